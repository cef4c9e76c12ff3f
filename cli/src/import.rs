//! `longstrap import`: a model folder in Hugging Face layout, made or checked.

use std::path::Path;

use anyhow::{Context, Result};
use indicatif::{ProgressBar, ProgressStyle};
use longstrap_model::{Dtype, ModelConfig, check_hf, import_gguf};

use crate::text;

/// `import gguf FILE --out DIR`.
pub(crate) fn gguf(file: &Path, out: &Path, dtype: Dtype) -> Result<u8> {
    let style = ProgressStyle::with_template("{bar:24.cyan/dim} {pos} of {len} tensors")
        .context("a fixed template")?;
    let bar = ProgressBar::new(0).with_style(style.progress_chars("━━─"));
    let imported = import_gguf(file, out, dtype, |done, all| {
        bar.set_length(all as u64);
        bar.set_position(done as u64);
    })?;
    bar.finish_and_clear();
    let what = if imported.reused { "was imported before" } else { "imported" };
    println!(
        "{} ({} parameters) {what}: {}",
        file.display(),
        text::count(imported.parameters),
        out.display()
    );
    describe(out)
}

/// `import hf DIR`.
pub(crate) fn hf(dir: &Path) -> Result<u8> {
    let checked = check_hf(dir)?;
    println!(
        "{} is sound: {} parameters as {}, {} token ids",
        dir.display(),
        text::count(checked.parameters),
        checked.dtype.config_name(),
        text::count(checked.tokens as u64)
    );
    describe(dir)
}

fn describe(dir: &Path) -> Result<u8> {
    let config = ModelConfig::load(dir)?;
    println!(
        "window {} tokens, RoPE base {}, {} layers",
        text::count(config.max_position_embeddings as u64),
        config.rope.theta,
        config.layers
    );
    println!("use it in a manifest as  model: {{uri: file://{}}}", dir.canonicalize()?.display());
    Ok(0)
}
