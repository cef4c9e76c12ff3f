//! Writes the CRDs and the table of reasons into `crds/generated/`, and the CRDs into the chart
//! `longstrap-crds`.

use std::{error::Error, fs, path::Path, process::ExitCode};

use longstrap_crds::crd;

fn main() -> ExitCode {
    match write() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cannot write the CRDs: {error}");
            ExitCode::FAILURE
        }
    }
}

fn write() -> Result<(), Box<dyn Error>> {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    let chart = own.join("../charts/longstrap-crds/templates");
    for (folder, files) in [(own.join("generated"), crd::files()?), (chart, crd::chart_templates()?)] {
        fs::create_dir_all(&folder)?;
        for (file, text) in files {
            let path = folder.join(file);
            fs::write(&path, text).map_err(|e| format!("{}: {e}", path.display()))?;
            println!("{}", path.display());
        }
    }
    Ok(())
}
