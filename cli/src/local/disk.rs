//! Whether the disk has room for a run, before it starts.
//!
//! Only what is known beforehand is counted: a training run whose model lies on this machine.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use longstrap_crds::Object;

use super::outcome::described;
use super::uris::local_path;
use crate::{estimate, text};

/// Says what the runs need on this machine's disk and refuses when there is less.
pub(crate) fn check(objects: &[Object]) -> Result<()> {
    for object in objects {
        let Object::ContextExtensionRun(run) = object else { continue };
        let Some(folder) = local_path(&object.common().storage.uri) else { continue };
        let Some(needed) = estimate::disk(&run.spec, objects) else { continue };
        let (there, place) = (estimate::bytes_below(&folder), existing(&folder));
        let free = nix::sys::statvfs::statvfs(&place)
            .with_context(|| format!("asking for the free space of {}", place.display()))?;
        let free = free.blocks_available().saturating_mul(free.fragment_size());
        let missing = needed.saturating_sub(there);
        if missing > 0 {
            eprintln!(
                "{}: needs up to {} of disk, {} are there, {} are free in {}",
                described(object),
                text::bytes(needed),
                text::bytes(there),
                text::bytes(free),
                place.display()
            );
        }
        if missing > free {
            bail!(
                "{}: {} more are needed in {}, which has {} free; make room or give another folder with --out",
                described(object),
                text::bytes(missing),
                folder.display(),
                text::bytes(free)
            );
        }
    }
    Ok(())
}

/// The nearest folder above that exists.
fn existing(path: &Path) -> PathBuf {
    path.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/")).to_owned()
}
