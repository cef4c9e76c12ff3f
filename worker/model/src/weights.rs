//! Read-only access to the safetensors of a model folder: mapped, never loaded whole, converted to
//! f32 into memory that the caller owns.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use memmap2::Mmap;
use safetensors::SafeTensors;
use safetensors::tensor::Dtype as Stored;

use crate::config::{Dtype, ModelConfig};
use crate::error::{ModelError, Result};
use crate::special::read_json;

/// One safetensors file.
#[derive(Debug)]
struct Shard {
    path: PathBuf,
    map: Mmap,
}

/// Where a tensor lies.
#[derive(Debug)]
struct Entry {
    shard: usize,
    dtype: Dtype,
    shape: Vec<usize>,
    range: std::ops::Range<usize>,
}

/// The weights of a model folder.
#[derive(Debug)]
pub struct Weights {
    dir: PathBuf,
    shards: Vec<Shard>,
    tensors: BTreeMap<String, Entry>,
}

impl Weights {
    /// Opens `model.safetensors`, or the shards that `model.safetensors.index.json` names.
    ///
    /// # Errors
    /// A missing, truncated or malformed file; an element type other than F32, BF16, F16; a tensor
    /// that two shards hold.
    pub fn open(dir: &Path) -> Result<Self> {
        let mut all = Self { dir: dir.to_owned(), shards: Vec::new(), tensors: BTreeMap::new() };
        for name in shard_names(dir)? {
            all.add(dir.join(name))?;
        }
        Ok(all)
    }

    fn add(&mut self, path: PathBuf) -> Result<()> {
        let file = File::open(&path).map_err(ModelError::io(&path))?;
        // SAFETY: the map is read-only; a file that another process cuts short meanwhile would
        // raise SIGBUS, as with every program that maps its weights.
        let map = unsafe { Mmap::map(&file) }.map_err(ModelError::io(&path))?;
        let shard = self.shards.len();
        {
            let parsed = SafeTensors::deserialize(&map).map_err(|e| unreadable(&path, &e))?;
            let base = map.as_ptr() as usize;
            for (name, view) in parsed.iter() {
                let dtype = match view.dtype() {
                    Stored::F32 => Dtype::F32,
                    Stored::BF16 => Dtype::BF16,
                    Stored::F16 => Dtype::F16,
                    other => {
                        let message = format!("has type {other:?}; F32, BF16 and F16 are supported");
                        return Err(ModelError::tensor(&path, name, message));
                    }
                };
                let start = view.data().as_ptr() as usize - base;
                let entry = Entry {
                    shard,
                    dtype,
                    shape: view.shape().to_vec(),
                    range: start..start + view.data().len(),
                };
                if self.tensors.insert(name.to_owned(), entry).is_some() {
                    return Err(ModelError::tensor(&path, name, "is in another shard too"));
                }
            }
        }
        self.shards.push(Shard { path, map });
        Ok(())
    }

    /// Names of the tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Dimensions of a tensor, row-major.
    ///
    /// # Errors
    /// No such tensor.
    pub fn shape(&self, name: &str) -> Result<&[usize]> {
        Ok(&self.entry(name)?.shape)
    }

    /// Stored element type of a tensor.
    ///
    /// # Errors
    /// No such tensor.
    pub fn dtype(&self, name: &str) -> Result<Dtype> {
        Ok(self.entry(name)?.dtype)
    }

    /// Copies a tensor as f32.
    ///
    /// # Errors
    /// No such tensor, or `out` has another number of elements.
    pub fn copy_f32(&self, name: &str, out: &mut [f32]) -> Result<()> {
        let entry = self.entry(name)?;
        let shard = &self.shards[entry.shard];
        let bytes = &shard.map[entry.range.clone()];
        if bytes.len() != out.len() * entry.dtype.size() {
            let message = format!("has shape {:?}, {} elements are asked for", entry.shape, out.len());
            return Err(ModelError::tensor(&shard.path, name, message));
        }
        match entry.dtype {
            Dtype::F32 => {
                for (o, b) in out.iter_mut().zip(bytes.chunks_exact(4)) {
                    *o = f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
                }
            }
            Dtype::BF16 => {
                for (o, b) in out.iter_mut().zip(bytes.chunks_exact(2)) {
                    *o = bf16::from_le_bytes([b[0], b[1]]).to_f32();
                }
            }
            Dtype::F16 => {
                for (o, b) in out.iter_mut().zip(bytes.chunks_exact(2)) {
                    *o = f16::from_le_bytes([b[0], b[1]]).to_f32();
                }
            }
        }
        Ok(())
    }

    /// A tensor as f32.
    ///
    /// # Errors
    /// No such tensor.
    pub fn tensor_f32(&self, name: &str) -> Result<Vec<f32>> {
        let mut out = vec![0.0; self.entry(name)?.shape.iter().product()];
        self.copy_f32(name, &mut out)?;
        Ok(out)
    }

    /// Checks that the tensors are those of the configuration: none missing, none superfluous, all
    /// of the right shape.
    ///
    /// # Errors
    /// The first tensor that differs.
    pub fn check(&self, config: &ModelConfig) -> Result<()> {
        let mut left: BTreeSet<&str> = self.names().collect();
        for spec in config.tensors() {
            let entry = self.entry(&spec.name)?;
            if entry.shape != spec.shape {
                let path = &self.shards[entry.shard].path;
                let message = format!("has shape {:?}, config.json asks for {:?}", entry.shape, spec.shape);
                return Err(ModelError::tensor(path, &spec.name, message));
            }
            left.remove(spec.name.as_str());
        }
        // Old exports carry the frequencies, which we compute; a tied output layer is the embedding.
        left.retain(|n| !n.ends_with("rotary_emb.inv_freq"));
        if config.tie_word_embeddings {
            left.remove("lm_head.weight");
        }
        match left.first() {
            None => Ok(()),
            Some(name) => Err(ModelError::tensor(
                &self.shards[self.entry(name)?.shard].path,
                name,
                "does not belong to a Llama model; models with biases or other additions are not supported",
            )),
        }
    }

    fn entry(&self, name: &str) -> Result<&Entry> {
        self.tensors.get(name).ok_or_else(|| ModelError::tensor(&self.dir, name, "is missing"))
    }
}

fn unreadable(path: &Path, e: &safetensors::SafeTensorError) -> ModelError {
    use safetensors::SafeTensorError as E;
    let hint = match e {
        E::MetadataIncompleteBuffer | E::HeaderTooSmall | E::InvalidHeaderLength => {
            ": the file is truncated or has bytes behind its end, copy it again"
        }
        _ => "",
    };
    ModelError::malformed(path, format!("is not a readable safetensors file ({e}){hint}"))
}

/// The safetensors files of a folder, in the order of their names.
fn shard_names(dir: &Path) -> Result<BTreeSet<String>> {
    let single = "model.safetensors".to_owned();
    if dir.join(&single).exists() {
        return Ok(BTreeSet::from([single]));
    }
    let path = dir.join("model.safetensors.index.json");
    let index = read_json(&path)?;
    if index.is_null() {
        let missing = std::io::Error::new(
            std::io::ErrorKind::NotFound,
            "has neither model.safetensors nor model.safetensors.index.json; is it a Hugging Face model folder?",
        );
        return Err(ModelError::io(dir)(missing));
    }
    let map = index["weight_map"].as_object().filter(|m| !m.is_empty());
    let map = map.ok_or_else(|| ModelError::malformed(&path, "has no weight_map"))?;
    map.values()
        .map(|v| match v.as_str() {
            Some(name) if !name.contains(['/', '\\']) => Ok(name.to_owned()),
            _ => Err(ModelError::malformed(
                &path,
                format!("weight_map names {v}, which is no file of this folder"),
            )),
        })
        .collect()
}
