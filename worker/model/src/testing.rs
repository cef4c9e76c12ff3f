//! The real small model and the texts that its reference values are of, for tests of this crate and
//! of those above it.
//!
//! `LONGSTRAP_SMOLLM2` names the folder that `hack/fetch-smollm2.sh` prints (`make test` sets it).

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use serde_json::Value;

use crate::tokenizer::sha256;
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

/// The GNU General Public License 3 as Debian's essential package `base-files` has it.
///
/// # Panics
/// When it is missing, or another text.
pub fn gpl_3() -> String {
    reference(
        Path::new("/usr/share/common-licenses/GPL-3"),
        "sha256:3972dc9744f6499f0f9b2dbf76696f2ae7ad8af9b23dde66d6af86c9dfb36986",
        "it belongs to Debian's package base-files: on another system, put that file there",
    )
}

/// The changelog in the sources of the crate `tokio`, version 1.54.1, as cargo has unpacked them.
///
/// # Panics
/// When `Cargo.lock` names another version: the values that belong to this text must be computed
/// for another one then.
pub fn tokio_changelog() -> String {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    // What it does not have it fetches: sources of other platforms, too, which no build here has asked for.
    command.args(["metadata", "--format-version", "1", "--locked"]);
    let output = command.current_dir(env!("CARGO_MANIFEST_DIR")).output().expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("cargo prints JSON");
    let mut packages = metadata["packages"].as_array().into_iter().flatten();
    let tokio = packages.find(|package| package["name"] == "tokio").expect("this workspace uses tokio");
    let manifest = Path::new(tokio["manifest_path"].as_str().unwrap_or_default());
    reference(
        &manifest.with_file_name("CHANGELOG.md"),
        "sha256:fdab3584e5e1b76f89ae5ebfd1be1a69b938bd27537af422c9154b27cbf9aa17",
        "the reference values are of tokio 1.54.1: with another version, compute them for its text",
    )
}

fn reference(path: &Path, digest: &str, advice: &str) -> String {
    let text = std::fs::read_to_string(path)
        .unwrap_or_else(|error| panic!("a reference text is missing: {}: {error}; {advice}", path.display()));
    let found = sha256(text.as_bytes());
    assert_eq!(found, digest, "{} is not the text of the reference values; {advice}", path.display());
    text
}
