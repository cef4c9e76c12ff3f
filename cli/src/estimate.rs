//! What a training run will need, from its spec and its model's configuration alone.

use std::path::Path;

use anyhow::{Context, Result, bail};
use longstrap_crds::context_extension_run::{Dtype, Stage};
use longstrap_crds::{ContextExtensionRunSpec, Object};
use longstrap_memory_plan::{Options, Plan, RunFiles, Shape, run_disk};
use longstrap_model::ModelConfig;

use crate::local::uris::local_path;

/// Shape of a model, as the memory plan wants it.
pub(crate) fn shape(config: &ModelConfig) -> Shape {
    Shape {
        layers: config.layers,
        hidden: config.hidden_size,
        intermediate: config.intermediate_size,
        heads: config.heads,
        kv_heads: config.kv_heads,
        head_dim: config.head_dim,
        vocab: config.vocab_size,
        tied: config.tie_word_embeddings,
    }
}

/// The model's configuration, where the model lies on this machine.
pub(crate) fn config(spec: &ContextExtensionRunSpec) -> Result<ModelConfig> {
    let uri = &spec.model.uri;
    let Some(folder) = local_path(uri) else {
        bail!("{uri} is not on this machine; give a copy as file:…")
    };
    ModelConfig::load(&folder).with_context(|| format!("reading the model {}", folder.display()))
}

/// The options that the trainer takes.
pub(crate) fn options(spec: &ContextExtensionRunSpec) -> Options {
    let ranks = spec.parallelism.nodes * spec.parallelism.ranks_per_node;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    Options {
        ranks: ranks as usize,
        threads: (cores / ranks.max(1) as usize).max(1),
        sources: spec.data.len(),
        ..Options::default()
    }
}

/// Memory of one rank in one stage.
pub(crate) fn memory(config: &ModelConfig, spec: &ContextExtensionRunSpec, stage: &Stage) -> Plan {
    let length = usize::try_from(stage.context_length.get()).unwrap_or(usize::MAX);
    Plan::new(shape(config), length, options(spec))
}

/// Bytes that a run takes in storage at its fullest; `None` when its model is not on this machine
/// (its own `prepare` speaks about that).
pub(crate) fn disk(spec: &ContextExtensionRunSpec, objects: &[Object]) -> Option<u64> {
    let config = config(spec).ok()?;
    let plan = memory(&config, spec, spec.stages.last()?);
    let export_bytes = match spec.export.dtype {
        Some(Dtype::Float32) => 4,
        Some(Dtype::BFloat16 | Dtype::Float16) => 2,
        None => config.dtype.size(),
    };
    let files = RunFiles {
        stages: spec.stages.len(),
        keep_last: spec.training.checkpoint.keep_last as usize,
        data_tokens: spec.data.iter().map(|data| tokens(data, objects)).sum(),
        export_bytes,
    };
    Some(run_disk(&plan, files))
}

/// Upper bound of the tokens of a source: what its SynthesisJob is asked for, or one token for
/// four bytes of the files.
fn tokens(data: &longstrap_crds::context_extension_run::DataSource, objects: &[Object]) -> u64 {
    if let Some(uri) = &data.uri {
        return local_path(uri).map_or(0, |path| bytes_below(&path) / 4);
    }
    let wanted = data.synthesis_job_ref.as_ref().map(|job| job.name.as_str());
    let job = objects.iter().find_map(|object| match object {
        Object::SynthesisJob(job) if job.metadata.name.as_deref() == wanted => Some(&job.spec.samples),
        _ => None,
    });
    let Some(samples) = job else { return 0 };
    let longest = |input: &longstrap_crds::synthesis_job::LongInput| {
        input.lengths.iter().filter_map(|length| length.bounds()).map(|(_, to)| to.get()).max().unwrap_or(0)
    };
    let input = samples.long_input.as_ref().map_or(0, |input| input.count * longest(input));
    let output = samples.long_output.as_ref().map_or(0, |output| output.count * output.max_tokens.get());
    input + output
}

/// Bytes of a file, or of all files below a folder; what cannot be read counts nothing.
pub(crate) fn bytes_below(path: &Path) -> u64 {
    if path.is_file() {
        return path.metadata().map_or(0, |metadata| metadata.len());
    }
    let Ok(entries) = std::fs::read_dir(path) else { return 0 };
    entries.filter_map(Result::ok).map(|entry| bytes_below(&entry.path())).sum()
}
