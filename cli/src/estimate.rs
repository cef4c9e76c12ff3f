//! What runs will need, from their specs, the models' configurations and the files on this machine.

use std::path::Path;

use anyhow::{Context, Result, bail};
use longstrap_crds::context_extension_run::{DataSource, Dtype, Stage};
use longstrap_crds::synthesis_job::{LongInput, Samples};
use longstrap_crds::{ContextExtensionRunSpec, Object, SynthesisJobSpec};
use longstrap_memory_plan::{Options, Plan, RunFiles, run_disk};
use longstrap_model::ModelConfig;

use crate::local::uris::local_path;

/// Bytes of text that one token stands for, at most: English has 4 to 5.
const BYTES_PER_TOKEN: u64 = 6;
/// How much text a compressed corpus holds, at most, per byte of its files.
const UNPACKED: u64 = 5;
/// Tokens of one source that are counted at most: more than any disk holds, and far from where their
/// bytes would overflow.
const MOST_TOKENS: u64 = 1 << 50;

/// The model's configuration, where the model lies on this machine.
pub(crate) fn config(spec: &ContextExtensionRunSpec) -> Result<ModelConfig> {
    let uri = &spec.model.uri;
    let Some(folder) = local_path(uri) else {
        bail!("{uri} is not on this machine; give a copy as file:…")
    };
    ModelConfig::load(&folder).with_context(|| format!("reading the model {}", folder.display()))
}

/// The options of a stage that do not depend on memory.
pub(crate) fn options(spec: &ContextExtensionRunSpec, stage: &Stage) -> Options {
    let ranks = stage.parallelism(&spec.parallelism).ranks() as usize;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    Options { ranks, threads: (cores / ranks).max(1), sources: spec.data.len(), ..Options::default() }
}

/// The plan of one rank in one stage that plans by `memory`.
pub(crate) fn plan(
    config: &ModelConfig,
    spec: &ContextExtensionRunSpec,
    stage: &Stage,
    memory: Option<u64>,
) -> Plan {
    let length = usize::try_from(stage.context_length.get()).unwrap_or(usize::MAX);
    Plan::within(config.shape(), length, options(spec, stage), memory)
}

/// Bytes that an object takes in storage at its fullest; `None` when that is not known here (its
/// own `prepare` speaks about that).
pub(crate) fn disk(object: &Object, objects: &[Object]) -> Option<u64> {
    match object {
        Object::SynthesisJob(job) => Some(synthesis_disk(&job.spec)),
        Object::ContextExtensionRun(run) => training_disk(&run.spec, objects),
    }
}

/// Checkpoints, weights of every stage, export and token shards.
pub(crate) fn training_disk(spec: &ContextExtensionRunSpec, objects: &[Object]) -> Option<u64> {
    let config = config(spec).ok()?;
    let plan = plan(&config, spec, spec.stages.last()?, None);
    let export_bytes = match spec.export.dtype {
        Some(Dtype::Float32) => 4,
        Some(Dtype::BFloat16 | Dtype::Float16) => 2,
        None => config.dtype.size(),
    };
    let files = RunFiles {
        stages: spec.stages.len(),
        keep_last: spec.training.checkpoint.keep_last as usize,
        data_tokens: spec.data.iter().map(|data| source_tokens(data, objects)).sum(),
        export_bytes,
    };
    Some(run_disk(&plan, files))
}

/// The corpus as shards and as an index (built, shipped, and unpacked by each worker), and every
/// sample four times: in its shard, in the part that is being written, as parquet, as JSON Lines.
fn synthesis_disk(spec: &SynthesisJobSpec) -> u64 {
    let folders = spec.corpus.iter().filter_map(|source| local_path(&source.uri));
    let text = folders.map(|path| weigh(&path, &text_of)).fold(0, u64::saturating_add);
    let copies = u64::from(spec.workers).saturating_add(3);
    text.saturating_mul(copies).saturating_add(4 * BYTES_PER_TOKEN * sample_tokens(&spec.samples))
}

/// Upper bound of the tokens of a source: what its SynthesisJob is asked for, or one token for
/// four bytes of the files.
fn source_tokens(data: &DataSource, objects: &[Object]) -> u64 {
    if let Some(uri) = &data.uri {
        return local_path(uri).map_or(0, |path| bytes_below(&path) / 4);
    }
    let wanted = data.synthesis_job_ref.as_ref().map(|job| job.name.as_str());
    let job = objects.iter().find_map(|object| match object {
        Object::SynthesisJob(job) if job.metadata.name.as_deref() == wanted => Some(&job.spec.samples),
        _ => None,
    });
    job.map_or(0, sample_tokens)
}

/// Upper bound of the tokens that are asked for; at most [`MOST_TOKENS`].
fn sample_tokens(samples: &Samples) -> u64 {
    let longest = |input: &LongInput| {
        input.lengths.iter().filter_map(|length| length.bounds()).map(|(_, to)| to.get()).max().unwrap_or(0)
    };
    let input = samples.long_input.as_ref().map_or(0, |input| input.count.saturating_mul(longest(input)));
    let output =
        samples.long_output.as_ref().map_or(0, |output| output.count.saturating_mul(output.max_tokens.get()));
    input.saturating_add(output).min(MOST_TOKENS)
}

/// Bytes of a file, or of all files below a folder; what cannot be read counts nothing.
pub(crate) fn bytes_below(path: &Path) -> u64 {
    weigh(path, &|_, bytes| bytes)
}

/// Bytes of text in a corpus file of so many bytes.
fn text_of(path: &Path, bytes: u64) -> u64 {
    match path.extension().and_then(|ending| ending.to_str()) {
        Some("gz" | "zst" | "parquet") => bytes.saturating_mul(UNPACKED),
        _ => bytes,
    }
}

fn weigh(path: &Path, weight: &dyn Fn(&Path, u64) -> u64) -> u64 {
    if path.is_file() {
        return path.metadata().map_or(0, |metadata| weight(path, metadata.len()));
    }
    let Ok(entries) = std::fs::read_dir(path) else { return 0 };
    entries.filter_map(Result::ok).map(|entry| weigh(&entry.path(), weight)).fold(0, u64::saturating_add)
}

#[cfg(test)]
mod tests {
    use longstrap_crds::Length;
    use longstrap_memory_plan::{Placement, Shape};

    use super::*;

    /// Of SmolLM2 1.7B, from its config.json; its window is 8192.
    const SMOLLM2_1_7B: Shape = Shape {
        layers: 24,
        hidden: 2048,
        intermediate: 8192,
        heads: 32,
        kv_heads: 32,
        head_dim: 64,
        vocab: 49152,
        tied: true,
    };

    #[test]
    fn the_largest_numbers_that_are_accepted_do_not_overflow() {
        // Their product is a multiple of 2^64.
        let (count, tokens) = (1 << 29, 1_u64 << 53);
        for samples in [
            serde_json::json!({"longInput": {"count": count, "lengths": [{"name": "l", "tokens": tokens}]}}),
            serde_json::json!({"longOutput": {"count": count, "maxTokens": tokens}}),
        ] {
            let job = serde_json::json!({
                "apiVersion": "longstrap.io/v1alpha1", "kind": "SynthesisJob", "metadata": {"name": "docs"},
                "spec": {
                    "storage": {"uri": "file:///r"}, "tokenizer": {"uri": "file:///m"},
                    "corpus": [{"name": "c", "uri": "file:///c", "format": "Text"}],
                    "generator": {"embedded": {"model": {"uri": "file:///m"}}, "contextLength": "8Ki"},
                    "samples": samples,
                },
            });
            let object = longstrap_crds::parse(&job).unwrap();
            // What no disk holds must not look like little.
            assert_eq!(disk(&object, &[]), Some(4 * BYTES_PER_TOKEN * MOST_TOKENS), "{samples}");
            let source = serde_json::json!({"name": "d", "synthesisJobRef": {"name": "docs"}});
            let source: DataSource = serde_json::from_value(source).unwrap();
            assert_eq!(source_tokens(&source, &[object]), MOST_TOKENS, "{samples}");
        }
        assert_eq!(text_of(Path::new("a.gz"), u64::MAX), u64::MAX);
    }

    #[test]
    fn the_example_for_a_cluster_fits_its_own_pods() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/cluster");
        let manifests = crate::manifest::load(&[folder]).unwrap();
        let run = manifests.objects.iter().find_map(|object| match object {
            Object::ContextExtensionRun(run) => Some(&run.spec),
            Object::SynthesisJob(_) => None,
        });
        let spec = run.unwrap();
        let template = serde_json::to_value(&spec.common.pod_template).unwrap();
        let resources = &template["spec"]["containers"][0]["resources"];
        let limits = resources["limits"].as_object().unwrap();
        assert!(limits.keys().all(|name| ["cpu", "memory"].contains(&name.as_str())), "{limits:?}");
        let memory: Length = limits["memory"].as_str().unwrap().parse().unwrap();
        let cpus: usize = resources["requests"]["cpu"].as_str().unwrap().parse().unwrap();
        let mut window = 8192;
        for stage in &spec.stages {
            let spread = stage.parallelism(&spec.parallelism);
            let placement =
                Placement { nodes: spread.nodes, ranks_per_node: spread.ranks_per_node, one_machine: false };
            let threads = cpus / spread.ranks_per_node as usize;
            let length = usize::try_from(stage.context_length.get()).unwrap();
            let plan = Plan::new(SMOLLM2_1_7B, length, Options { threads, ..options(spec, stage) });
            assert!(plan.fits(placement.share(memory.get())), "{}\n{plan}", stage.name);
            assert!(length > window, "{}", stage.name);
            window = length;
        }
    }
}
