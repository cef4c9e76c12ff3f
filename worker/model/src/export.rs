//! Writes a model folder that `transformers` and vLLM load. The bytes are a function of the
//! configuration, the weights and the source folder's small files: no time, no path, no version.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use crate::config::{Dtype, ModelConfig, TensorSpec};
use crate::error::{ModelError, Result};
use crate::special::read_json;
use crate::tokenizer::hex_digest;

/// Largest shard that is written, in bytes.
pub const MAX_SHARD_BYTES: u64 = 5_000_000_000;

/// Small files that go from the source folder into an export as they are.
const CARRIED: [&str; 7] = [
    "tokenizer.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "generation_config.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
];

/// What to export.
#[derive(Debug)]
pub struct Export<'a> {
    /// The model as it is now ([`ModelConfig::extended`]).
    pub config: &'a ModelConfig,
    /// Folder whose tokenizer files are carried over.
    pub source: &'a Path,
    /// Element type to write; the configuration's own when the source is to be kept.
    pub dtype: Dtype,
    /// Split into shards of at most this many bytes of tensors ([`MAX_SHARD_BYTES`]).
    pub max_shard_bytes: u64,
}

/// A file that was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportedFile {
    /// Name in the folder.
    pub name: String,
    /// Its size.
    pub bytes: u64,
    /// `sha256:` and hex digest.
    pub digest: String,
}

/// Writes the folder `out` (made if absent; files of the same names are overwritten). `read` fills
/// the f32 values of a tensor of [`ModelConfig::tensors`], asked for in that order, one at a time.
///
/// # Errors
/// The reader's, and the system's with the path (a full disk, no permission).
pub fn export(
    what: &Export<'_>,
    out: &Path,
    mut read: impl FnMut(&TensorSpec, &mut [f32]) -> Result<()>,
) -> Result<Vec<ExportedFile>> {
    std::fs::create_dir_all(out).map_err(ModelError::io(out))?;
    let mut files = vec![write_json(out, "config.json", &what.config.to_json(what.dtype))?];
    for name in CARRIED {
        let from = what.source.join(name);
        match std::fs::read(&from) {
            Ok(bytes) => files.push(write_bytes(out, name, &bytes)?),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => return Err(ModelError::io(&from)(e)),
        }
    }
    if let Value::Object(mut config) = read_json(&what.source.join("tokenizer_config.json"))? {
        config.insert("model_max_length".into(), json!(what.config.max_position_embeddings));
        files.push(write_json(out, "tokenizer_config.json", &Value::Object(config))?);
    }
    files.extend(write_weights(what.config, what.dtype, what.max_shard_bytes, out, &mut read)?);
    files.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(files)
}

/// Writes the weights as one file, or as shards and their index.
pub(crate) fn write_weights(
    config: &ModelConfig,
    dtype: Dtype,
    max_shard_bytes: u64,
    out: &Path,
    read: &mut dyn FnMut(&TensorSpec, &mut [f32]) -> Result<()>,
) -> Result<Vec<ExportedFile>> {
    let size = |t: &TensorSpec| (t.elements() * dtype.size()) as u64;
    let mut shards: Vec<Vec<TensorSpec>> = vec![Vec::new()];
    let (mut filled, mut total) = (0, 0);
    for tensor in config.tensors() {
        let bytes = size(&tensor);
        if filled + bytes > max_shard_bytes && filled > 0 {
            shards.push(Vec::new());
            filled = 0;
        }
        filled += bytes;
        total += bytes;
        shards.last_mut().expect("begins with one shard").push(tensor);
    }
    let mut files = Vec::new();
    let mut map = Map::new();
    for (i, tensors) in shards.iter().enumerate() {
        let name = match shards.len() {
            1 => "model.safetensors".to_owned(),
            n => format!("model-{:05}-of-{n:05}.safetensors", i + 1),
        };
        map.extend(tensors.iter().map(|t| (t.name.clone(), json!(name))));
        files.push(write_shard(out, &name, tensors, dtype, read)?);
    }
    if shards.len() > 1 {
        let index = json!({"metadata": {"total_size": total}, "weight_map": map});
        files.push(write_json(out, "model.safetensors.index.json", &index)?);
    }
    Ok(files)
}

fn write_shard(
    dir: &Path,
    name: &str,
    tensors: &[TensorSpec],
    dtype: Dtype,
    read: &mut dyn FnMut(&TensorSpec, &mut [f32]) -> Result<()>,
) -> Result<ExportedFile> {
    // transformers refuses a file that does not say its format.
    let mut header = Map::from_iter([("__metadata__".to_owned(), json!({"format": "pt"}))]);
    let mut at = 0;
    for t in tensors {
        let end = at + t.elements() * dtype.size();
        let entry = json!({"dtype": dtype.safetensors_name(), "shape": t.shape, "data_offsets": [at, end]});
        header.insert(t.name.clone(), entry);
        at = end;
    }
    let mut header = Value::Object(header).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut file = Hashed::create(dir, name)?;
    file.write(&(header.len() as u64).to_le_bytes())?;
    file.write(&header)?;
    let mut values = Vec::new();
    let mut bytes = Vec::new();
    for t in tensors {
        values.clear();
        values.resize(t.elements(), 0.0);
        read(t, &mut values)?;
        // In pieces, so that a large tensor is not held twice.
        for piece in values.chunks(1 << 20) {
            bytes.clear();
            match dtype {
                Dtype::F32 => bytes.extend(piece.iter().flat_map(|v| v.to_le_bytes())),
                Dtype::BF16 => bytes.extend(piece.iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes())),
                Dtype::F16 => bytes.extend(piece.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes())),
            }
            file.write(&bytes)?;
        }
    }
    file.finish()
}

/// Pretty JSON with a newline at its end, as Hugging Face's tools write it.
pub(crate) fn write_json(dir: &Path, name: &str, value: &Value) -> Result<ExportedFile> {
    let mut text = serde_json::to_vec_pretty(value).map_err(|e| ModelError::malformed(&dir.join(name), e))?;
    text.push(b'\n');
    write_bytes(dir, name, &text)
}

pub(crate) fn write_bytes(dir: &Path, name: &str, bytes: &[u8]) -> Result<ExportedFile> {
    let mut file = Hashed::create(dir, name)?;
    file.write(bytes)?;
    file.finish()
}

/// A file whose digest is taken while it is written.
struct Hashed {
    path: PathBuf,
    name: String,
    file: BufWriter<File>,
    digest: Sha256,
    bytes: u64,
}

impl Hashed {
    fn create(dir: &Path, name: &str) -> Result<Self> {
        let path = dir.join(name);
        let file = File::create(&path).map_err(ModelError::io(&path))?;
        let file = BufWriter::with_capacity(1 << 20, file);
        Ok(Self { path, name: name.to_owned(), file, digest: Sha256::new(), bytes: 0 })
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.digest.update(bytes);
        self.bytes += bytes.len() as u64;
        self.file.write_all(bytes).map_err(ModelError::io(&self.path))
    }

    fn finish(self) -> Result<ExportedFile> {
        let file = self.file.into_inner().map_err(|e| ModelError::io(&self.path)(e.into_error()))?;
        file.sync_all().map_err(ModelError::io(&self.path))?;
        let digest = hex_digest(self.digest.finalize().as_slice());
        Ok(ExportedFile { name: self.name, bytes: self.bytes, digest })
    }
}
