//! Writes the CRDs into `crds/generated/` (or the folder given as the only argument).

use std::{env, fs, path::PathBuf, process::ExitCode};

fn main() -> ExitCode {
    let folder = env::args()
        .nth(1)
        .map_or_else(|| PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/generated")), PathBuf::from);
    for (file, crd) in longstrap_crds::crd::all() {
        let path = folder.join(file);
        let written = longstrap_crds::crd::to_yaml(&crd)
            .map_err(|e| e.to_string())
            .and_then(|yaml| fs::write(&path, yaml).map_err(|e| e.to_string()));
        if let Err(error) = written {
            eprintln!("{}: {error}", path.display());
            return ExitCode::FAILURE;
        }
        println!("{}", path.display());
    }
    ExitCode::SUCCESS
}
