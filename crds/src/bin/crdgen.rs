//! Writes the CRDs and the table of reasons into `crds/generated/` (or the folder given as the only
//! argument).

use std::{env, error::Error, fs, path::PathBuf, process::ExitCode};

fn main() -> ExitCode {
    let own = concat!(env!("CARGO_MANIFEST_DIR"), "/generated");
    let folder = env::args().nth(1).map_or_else(|| PathBuf::from(own), PathBuf::from);
    match write(&folder) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cannot write into {}: {error}", folder.display());
            ExitCode::FAILURE
        }
    }
}

fn write(folder: &PathBuf) -> Result<(), Box<dyn Error>> {
    fs::create_dir_all(folder)?;
    for (file, text) in longstrap_crds::crd::files()? {
        fs::write(folder.join(file), text)?;
        println!("{}", folder.join(file).display());
    }
    Ok(())
}
