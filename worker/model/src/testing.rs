//! The real small model, for tests of this crate and of those above it.
//!
//! `LONGSTRAP_SMOLLM2` names the folder that `hack/fetch-smollm2.sh` prints (`make test` sets it).

use std::path::PathBuf;
use std::sync::OnceLock;

use crate::{Dtype, import_gguf};

/// The fetched GGUF file.
///
/// # Panics
/// When `LONGSTRAP_SMOLLM2` is not set.
pub fn smollm2_gguf() -> PathBuf {
    let folder = std::env::var_os("LONGSTRAP_SMOLLM2").expect(
        "LONGSTRAP_SMOLLM2 is not set: run hack/fetch-smollm2.sh and set it to the folder that it prints",
    );
    PathBuf::from(folder).join("SmolLM2-135M-Instruct.Q4_1.gguf")
}

/// The imported folder, made once beside the fetched file.
///
/// # Panics
/// As [`smollm2_gguf`], and when the import fails.
pub fn smollm2() -> &'static PathBuf {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let file = smollm2_gguf();
        let out = file.with_file_name("hf");
        import_gguf(&file, &out, Dtype::F32, |_, _| {}).unwrap_or_else(|error| panic!("{error}"));
        out
    })
}
