//! `longstrap validate`: every error of a set of manifests.

use std::path::PathBuf;

use anyhow::Result;

use crate::local::outcome::described;
use crate::manifest::{Manifests, load};

/// Prints what is wrong, or what was read.
pub(crate) fn validate(files: &[PathBuf]) -> Result<u8> {
    match read(files) {
        Some(manifests) => {
            let names = manifests.objects.iter().map(described).collect::<Vec<_>>().join(", ");
            println!("valid: {names}");
            if !manifests.foreign.is_empty() {
                println!("not checked (other kinds): {}", manifests.foreign.join(", "));
            }
            Ok(0)
        }
        None => Ok(1),
    }
}

/// The manifests; `None` when they have errors, which are printed.
pub(crate) fn read(files: &[PathBuf]) -> Option<Manifests> {
    load(files)
        .map_err(|problems| {
            problems.iter().for_each(|problem| eprintln!("{problem}"));
            eprintln!(
                "{} error{} found; nothing was done",
                problems.len(),
                if problems.len() == 1 { "" } else { "s" }
            );
        })
        .ok()
}
