//! Tensors of a safetensors file, read without the code under test.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;

/// Type and shape by name.
pub fn shapes(file: &Path) -> BTreeMap<String, (String, Vec<u64>)> {
    let (header, _) = parts(&std::fs::read(file).unwrap());
    let shape =
        |tensor: &Value| tensor["shape"].as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).collect();
    header
        .into_iter()
        .map(|(name, tensor)| (name, (tensor["dtype"].as_str().unwrap().to_owned(), shape(&tensor))))
        .collect()
}

/// All values of a file whose tensors are f32, in the order of the names.
pub fn values(file: &Path) -> Vec<f32> {
    let bytes = std::fs::read(file).unwrap();
    let (header, start) = parts(&bytes);
    let values = header.values().flat_map(|tensor| {
        assert_eq!(tensor["dtype"], "F32", "{}", file.display());
        let at = |end: usize| start + usize::try_from(tensor["data_offsets"][end].as_u64().unwrap()).unwrap();
        bytes[at(0)..at(1)].chunks_exact(4).map(|four| f32::from_le_bytes(four.try_into().unwrap()))
    });
    values.collect()
}

/// The header without its metadata, and where the data begins.
fn parts(bytes: &[u8]) -> (BTreeMap<String, Value>, usize) {
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap());
    let start = 8 + usize::try_from(length).unwrap();
    let mut header: BTreeMap<String, Value> = serde_json::from_slice(&bytes[8..start]).unwrap();
    header.remove("__metadata__");
    (header, start)
}
