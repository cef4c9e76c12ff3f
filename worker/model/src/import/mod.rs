//! GGUF → Hugging Face folder: dequantised weights with llama.cpp's permutation undone, tokenizer,
//! chat template and the small files. The folder appears whole or not at all, by a rename.

mod header;
mod tokenizer;

use std::fs::File;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use self::header::config;
use self::tokenizer::write_small_files;
use crate::config::{Dtype, ModelConfig, TensorSpec};
use crate::error::{ModelError, Result};
use crate::export::{MAX_SHARD_BYTES, write_json, write_weights};
use crate::gguf::Gguf;
use crate::special::read_json;
use crate::tokenizer::hex_digest;

/// Says which file a folder was made from; written last, so it also says that the folder is whole.
const RECORD: &str = "longstrap-import.json";

/// Rises when an import of the same file would give other bytes.
const FORMAT_VERSION: u64 = 1;

/// What an import did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Imported {
    /// The folder held this very import already; nothing was written.
    pub reused: bool,
    /// Digest of the GGUF file, `sha256:` and hex.
    pub source_digest: String,
    /// Number of parameters.
    pub parameters: u64,
}

/// Imports a GGUF file into the folder `out`, which must be absent, empty, or an earlier import of
/// the same file (then there is nothing to do). `progress` hears (tensors written, tensors in all).
///
/// # Errors
/// A file that is truncated or not GGUF v3; K-quants, other architectures, `rope_freqs.weight` and
/// tokenizers that we do not read, by name; a tensor of the wrong shape; a folder with other content.
pub fn import_gguf(
    file: &Path,
    out: &Path,
    dtype: Dtype,
    mut progress: impl FnMut(usize, usize),
) -> Result<Imported> {
    let gguf = Gguf::open(file)?;
    let config = config(&gguf)?;
    let source_digest = hex_digest(Sha256::digest(gguf.bytes()).as_slice());
    let record =
        json!({"formatVersion": FORMAT_VERSION, "source": source_digest, "dtype": dtype.config_name()});
    let done =
        |reused| Imported { reused, source_digest: source_digest.clone(), parameters: config.parameters() };
    if holds_import(out, &record)? {
        return Ok(done(true));
    }
    let partial = partial_folder(out)?;
    if partial.exists() {
        std::fs::remove_dir_all(&partial).map_err(ModelError::io(&partial))?;
    }
    let written = write_folder(&gguf, &config, dtype, &partial, &mut progress)
        .and_then(|()| write_json(&partial, RECORD, &record).map(drop))
        .and_then(|()| publish(&partial, out));
    if let Err(error) = written {
        // A full disk is not kept full; the error is what counts.
        let _ = std::fs::remove_dir_all(&partial);
        return Err(error);
    }
    Ok(done(false))
}

fn write_folder(
    gguf: &Gguf,
    config: &ModelConfig,
    dtype: Dtype,
    folder: &Path,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<()> {
    std::fs::create_dir_all(folder).map_err(ModelError::io(folder))?;
    write_small_files(gguf, config, dtype, folder)?;
    let total = config.tensors().len();
    let mut written = 0;
    write_weights(config, dtype, MAX_SHARD_BYTES, folder, &mut |spec, values| {
        read_tensor(gguf, config, spec, values)?;
        written += 1;
        progress(written, total);
        Ok(())
    })?;
    Ok(())
}

fn holds_import(out: &Path, record: &Value) -> Result<bool> {
    let mut entries = match std::fs::read_dir(out) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        Err(e) => return Err(ModelError::io(out)(e)),
    };
    if entries.next().is_none() {
        return Ok(false);
    }
    if read_json(&out.join(RECORD))? == *record {
        return Ok(true);
    }
    let taken = std::io::Error::new(
        std::io::ErrorKind::AlreadyExists,
        "holds something else than an import of this file with these options; name another folder, or remove it",
    );
    Err(ModelError::io(out)(taken))
}

fn partial_folder(out: &Path) -> Result<PathBuf> {
    let name = out.file_name().and_then(|n| n.to_str());
    let name = name.ok_or_else(|| ModelError::malformed(out, "is not the name of a folder to be made"))?;
    Ok(out.with_file_name(format!(".{name}.partial")))
}

fn publish(partial: &Path, out: &Path) -> Result<()> {
    std::fs::rename(partial, out).map_err(ModelError::io(out))?;
    let parent = match out.parent() {
        Some(p) if !p.as_os_str().is_empty() => p,
        _ => Path::new("."),
    };
    // The rename itself must survive a power cut.
    File::open(parent).and_then(|d| d.sync_all()).map_err(ModelError::io(parent))
}

/// The GGUF name of a tensor of the Hugging Face layout.
fn gguf_name(name: &str) -> String {
    match name {
        "model.embed_tokens.weight" => return "token_embd.weight".into(),
        "model.norm.weight" => return "output_norm.weight".into(),
        "lm_head.weight" => return "output.weight".into(),
        _ => {}
    }
    name.replace("model.layers.", "blk.")
        .replace("self_attn.q_proj", "attn_q")
        .replace("self_attn.k_proj", "attn_k")
        .replace("self_attn.v_proj", "attn_v")
        .replace("self_attn.o_proj", "attn_output")
        .replace("mlp.gate_proj", "ffn_gate")
        .replace("mlp.up_proj", "ffn_up")
        .replace("mlp.down_proj", "ffn_down")
        .replace("input_layernorm", "attn_norm")
        .replace("post_attention_layernorm", "ffn_norm")
}

fn read_tensor(gguf: &Gguf, config: &ModelConfig, spec: &TensorSpec, out: &mut [f32]) -> Result<()> {
    gguf.read(&gguf_name(&spec.name), &spec.shape, out)?;
    let columns = config.hidden_size;
    if spec.name.ends_with("q_proj.weight") || spec.name.ends_with("k_proj.weight") {
        unpermute(out, config.head_dim, columns);
    }
    Ok(())
}

/// llama.cpp stores the rows of Q and K with the two halves of each head interleaved (its rotary
/// embedding turns neighbours); the Hugging Face layout has the halves one after the other.
fn unpermute(weight: &mut [f32], head_dim: usize, columns: usize) {
    let mut head = vec![0.0; head_dim * columns];
    for rows in weight.chunks_exact_mut(head_dim * columns) {
        for (i, pair) in rows.chunks_exact(2 * columns).enumerate() {
            let (first, second) = pair.split_at(columns);
            head[i * columns..][..columns].copy_from_slice(first);
            head[(head_dim / 2 + i) * columns..][..columns].copy_from_slice(second);
        }
        rows.copy_from_slice(&head);
    }
}
