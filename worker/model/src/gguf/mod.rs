//! GGUF version 3 files: header, metadata and tensors, every length checked against the file
//! before it is used. Layout: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>.

mod quant;
mod read;

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::path::{Path, PathBuf};

use memmap2::Mmap;

use crate::error::{ModelError, Result};
use quant::Block;
use read::Cursor;

/// A metadata value.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Meta {
    Unsigned(u64),
    Signed(i64),
    Float(f32),
    Double(f64),
    Bool(bool),
    Text(String),
    Texts(Vec<String>),
    Numbers(Vec<i64>),
    /// An array of a kind that no reader here asks for.
    Other,
}

#[derive(Debug)]
struct Entry {
    /// Dimensions as in the file: the fastest first, so `[in, out]` for a matrix.
    dims: Vec<usize>,
    block: Block,
    offset: usize,
}

/// An open file.
#[derive(Debug)]
pub(crate) struct Gguf {
    path: PathBuf,
    map: Mmap,
    meta: HashMap<String, Meta>,
    tensors: BTreeMap<String, Entry>,
}

impl Gguf {
    /// Opens a file and checks that every tensor lies inside it.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(ModelError::io(path))?;
        // SAFETY: the map is read-only; a file that another process cuts short meanwhile would
        // raise SIGBUS, as with every program that maps its weights.
        let map = unsafe { Mmap::map(&file) }.map_err(ModelError::io(path))?;
        let bad = |message: String| ModelError::malformed(path, message);
        let mut c = Cursor::new(&map);
        if c.take(4).map_err(bad)? != b"GGUF" {
            return Err(bad("is not a GGUF file (it does not begin with GGUF)".into()));
        }
        let version = c.u32().map_err(bad)?;
        if version != 3 {
            return Err(bad(format!("is GGUF version {version}; version 3 is supported")));
        }
        let tensor_count = c.u64().map_err(bad)?;
        let meta_count = c.u64().map_err(bad)?;
        let mut meta = HashMap::new();
        for _ in 0..meta_count {
            let key = c.text().map_err(bad)?;
            let value = c.meta().map_err(|e| bad(format!("metadata {key}: {e}")))?;
            meta.insert(key, value);
        }
        let mut tensors = BTreeMap::new();
        for _ in 0..tensor_count {
            let name = c.text().map_err(bad)?;
            let entry = entry(&mut c).map_err(|e| ModelError::tensor(path, &name, e))?;
            tensors.insert(name, entry);
        }
        let align = match meta.get("general.alignment") {
            None => 32,
            Some(Meta::Unsigned(n)) if n.is_power_of_two() && *n <= 1 << 20 => *n as usize,
            Some(_) => return Err(bad("metadata general.alignment is not a power of two".into())),
        };
        let data = c.position().next_multiple_of(align);
        for (name, t) in &mut tensors {
            let bytes =
                t.dims.iter().try_fold(1usize, |n, &d| n.checked_mul(d)).and_then(|n| t.block.bytes(n));
            let end = bytes.and_then(|b| data.checked_add(t.offset)?.checked_add(b));
            match end {
                Some(end) if end <= map.len() => t.offset += data,
                _ => {
                    return Err(ModelError::tensor(
                        path,
                        name,
                        format!(
                            "ends beyond the file's {} bytes: the file is truncated, download it again",
                            map.len()
                        ),
                    ));
                }
            }
        }
        Ok(Self { path: path.to_owned(), map, meta, tensors })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The whole file.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.map
    }

    pub(crate) fn meta(&self, key: &str) -> Option<&Meta> {
        self.meta.get(key)
    }

    pub(crate) fn tensor_names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Dequantises a tensor of the given row-major shape.
    pub(crate) fn read(&self, name: &str, shape: &[usize], out: &mut [f32]) -> Result<()> {
        let Some(t) = self.tensors.get(name) else {
            return Err(ModelError::tensor(&self.path, name, "is missing"));
        };
        if !t.dims.iter().rev().eq(shape) {
            let found: Vec<usize> = t.dims.iter().rev().copied().collect();
            return Err(ModelError::tensor(
                &self.path,
                name,
                format!("has shape {found:?}, the metadata asks for {shape:?}"),
            ));
        }
        let elements = shape.iter().product();
        let bytes = t.block.bytes(elements).expect("checked when the file was opened");
        t.block.dequantize(&self.map[t.offset..t.offset + bytes], out);
        Ok(())
    }
}

fn entry(c: &mut Cursor<'_>) -> Result<Entry, String> {
    let rank = c.u32()?;
    if rank == 0 || rank > 4 {
        return Err(format!("has {rank} dimensions"));
    }
    let dims: Vec<usize> = (0..rank).map(|_| c.size()).collect::<Result<_, _>>()?;
    let kind = c.u32()?;
    let block = Block::from_ggml(kind)?;
    if !dims[0].is_multiple_of(block.elements()) {
        return Err(format!(
            "has rows of {} elements, which blocks of {} do not fill",
            dims[0],
            block.elements()
        ));
    }
    Ok(Entry { dims, block, offset: c.size()? })
}
