//! Run manifests on this machine or look after runs on a cluster, plan memory, import models,
//! inspect data, show reports.
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod cluster;
mod dataset;
mod estimate;
mod import;
mod inspect;
mod local;
mod located;
mod manifest;
mod plan;
mod report;
mod text;
mod validate;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

/// Lets a language model bootstrap its own context length.
#[derive(Parser)]
#[command(name = "longstrap", version, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Check manifests: every error with its file, line and field
    Validate(Files),
    /// Show the memory of each training stage, what fits, and what the run takes on disk
    Plan(PlanArgs),
    /// Run manifests on this machine, without a cluster
    #[command(subcommand)]
    Local(Local),
    /// Turn a model into a folder in Hugging Face layout, or check one
    #[command(subcommand)]
    Import(Import),
    /// Show a sample of a dataset as the model sees it
    Inspect(InspectArgs),
    /// Say where the HTML reports are
    Report {
        /// Output folder of `local run`
        #[arg(long, value_name = "DIR", default_value = "longstrap-out")]
        out: PathBuf,
        /// Show the newest one in the browser
        #[arg(long)]
        open: bool,
    },
    #[command(flatten)]
    Cluster(cluster::Command),
}

#[derive(Subcommand)]
enum Local {
    /// Run manifests to the end; the same command again goes on where it was
    #[command(after_help = "Exit codes: 0 complete, 1 failed, 2 blocked (something must be mended), \
        3 something outside stayed away, 130 stopped by a signal.")]
    Run(LocalRun),
}

/// Options of `inspect`.
#[derive(Args, Clone, Debug)]
struct InspectArgs {
    /// Id of the sample, or its number in the dataset, from 0
    sample: String,
    /// Render with the model's chat template: borders of documents, loss in colour, counts
    #[arg(long)]
    tokens: bool,
    /// Output folder of `local run`; its datasets are searched
    #[arg(long, value_name = "DIR", default_value = "longstrap-out")]
    out: PathBuf,
    /// A folder with dataset.json instead
    #[arg(long, value_name = "DIR")]
    dataset: Option<PathBuf>,
    /// Folder of the model whose tokenizer renders; by default the one that the dataset was made for
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// Which tokens a run would learn
    #[arg(long, value_enum, default_value_t = LossOn::All)]
    loss_on: LossOn,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum LossOn {
    All,
    Response,
}

impl From<LossOn> for longstrap_model::LossOn {
    fn from(loss_on: LossOn) -> Self {
        match loss_on {
            LossOn::All => Self::All,
            LossOn::Response => Self::Response,
        }
    }
}

/// Options of `plan`.
#[derive(Args, Clone, Debug)]
struct PlanArgs {
    #[command(flatten)]
    files: Files,
    /// Folder that `file:NAME` in manifests is relative to
    #[arg(long, value_name = "DIR", default_value = "longstrap-out")]
    out: PathBuf,
    /// Memory of one rank, as 80Gi; by default acceleratorMemory, or this machine's shared by the ranks
    #[arg(long, value_name = "SIZE")]
    memory: Option<longstrap_crds::Length>,
}

/// Options of `local run`.
#[derive(Args, Clone, Debug)]
struct LocalRun {
    #[command(flatten)]
    files: Files,
    /// Folder for results and state; `file:NAME` in manifests is a place below it
    #[arg(long, value_name = "DIR", default_value = "longstrap-out")]
    out: PathBuf,
    /// How long pods wait for an endpoint or storage that is away, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    outage_timeout: u64,
    /// Start over beside the old results, with what the manifests say now; the same command again
    /// goes on with that until it is complete
    #[arg(long, value_enum, value_name = "WHERE")]
    restart_from: Option<RestartFrom>,
    /// Run the clock of back-offs and deadlines so many times faster; for tests
    #[arg(long, hide = true, default_value_t = 1.0)]
    clock_speed: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum RestartFrom {
    /// Keep the datasets of SynthesisJobs, train every ContextExtensionRun again
    Stage,
    /// Do everything again
    Data,
}

#[derive(Subcommand)]
enum Import {
    /// Convert a GGUF file: weights dequantised, tokenizer and chat template rebuilt
    Gguf {
        /// The GGUF file (F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1 or Q8_0)
        file: PathBuf,
        /// Folder to write; it appears whole or not at all
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
        /// Type of the written weights; float32 loses nothing of any quantised type
        #[arg(long, value_enum, default_value_t = Dtype::Float32)]
        dtype: Dtype,
    },
    /// Check a Hugging Face folder: configuration, tensors, tokenizer, chat template
    Hf {
        /// The folder
        dir: PathBuf,
    },
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Dtype {
    Float32,
    Bfloat16,
    Float16,
}

impl From<Dtype> for longstrap_model::Dtype {
    fn from(dtype: Dtype) -> Self {
        match dtype {
            Dtype::Float32 => Self::F32,
            Dtype::Bfloat16 => Self::BF16,
            Dtype::Float16 => Self::F16,
        }
    }
}

/// Manifests.
#[derive(Args, Clone, Debug)]
struct Files {
    /// A manifest, or a folder of them (*.yaml, *.yml, *.json); may be given again
    #[arg(short = 'f', long = "file", value_name = "FILE|DIR", required = true, num_args = 1..)]
    files: Vec<PathBuf>,
}

/// The chain of causes in one line, without those that the sentence before them already holds.
fn told_once(error: &anyhow::Error) -> String {
    let mut told = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if !told.contains(&cause) {
            if !told.is_empty() {
                told.push_str(": ");
            }
            told.push_str(&cause);
        }
    }
    told
}

/// Exit code of a mistake on the command line; clap's 2 means blocked here.
const USAGE: u8 = 64;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are asked for and come on standard output; who closed it knows.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { USAGE } else { 0 });
        }
    };
    let done = match cli.command {
        Command::Validate(files) => validate::validate(&files.files),
        Command::Plan(options) => plan::plan(&options),
        Command::Local(Local::Run(options)) => local::run(&options),
        Command::Import(Import::Gguf { file, out, dtype }) => import::gguf(&file, &out, dtype.into()),
        Command::Import(Import::Hf { dir }) => import::hf(&dir),
        Command::Inspect(options) => inspect::inspect(&options),
        Command::Report { out, open } => report::report(&out, open),
        Command::Cluster(command) => cluster::run(&command),
    };
    match done {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("error: {}", told_once(&error));
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use anyhow::Context as _;

    #[test]
    fn a_cause_is_told_once() {
        let io = std::io::Error::from_raw_os_error(2);
        let error = anyhow::Error::from(io).context("/x: No such file or directory (os error 2)");
        assert_eq!(super::told_once(&error), "/x: No such file or directory (os error 2)");
        let other = Err::<(), _>(anyhow::anyhow!("disk full")).context("cannot write y").unwrap_err();
        assert_eq!(super::told_once(&other), "cannot write y: disk full");
    }
}
