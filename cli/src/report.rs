//! `longstrap report`: where the reports of an output folder are.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// Folders below the output folder that are searched: `RUN/rK/report.html` where RUN is `file:a/b/c`.
const DEPTH: usize = 5;

/// Prints the paths of all reports, the newest last; with `open` shows that one.
pub(crate) fn report(out: &Path, open: bool) -> Result<u8> {
    let mut found = Vec::new();
    search(out, DEPTH, &mut found);
    if found.is_empty() {
        bail!(
            "no report.html below {}: a ContextExtensionRun with `evaluation` writes one when it is complete",
            out.display()
        );
    }
    let changed = |path: &PathBuf| path.metadata().and_then(|metadata| metadata.modified()).ok();
    found.sort_by_key(changed);
    found.iter().for_each(|path| println!("{}", path.display()));
    if let (true, Some(newest)) = (open, found.last()) {
        show(newest)?;
    }
    Ok(0)
}

fn search(folder: &Path, depth: usize, found: &mut Vec<PathBuf>) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for entry in entries.filter_map(Result::ok) {
        let path = entry.path();
        if path.is_dir() && depth > 1 && entry.file_name() != ".local" {
            search(&path, depth - 1, found);
        } else if entry.file_name() == "report.html" {
            found.push(path);
        }
    }
}

/// Hands the file to the desktop.
fn show(path: &Path) -> Result<()> {
    for opener in ["xdg-open", "open"] {
        let started = Command::new(opener).arg(path).stdin(Stdio::null()).stderr(Stdio::null()).status();
        if started.is_ok_and(|status| status.success()) {
            return Ok(());
        }
    }
    Err(anyhow::anyhow!("neither xdg-open nor open could show it")).context(path.display().to_string())
}
