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
        let place = existing(&folder);
        let disk = nix::sys::statvfs::statvfs(&place)
            .with_context(|| format!("asking for the free space of {}", place.display()))?;
        let room = Room {
            needed,
            there: estimate::bytes_below(&folder),
            free: disk.blocks_available().saturating_mul(disk.fragment_size()),
        };
        match room.judge() {
            Ok(Some(words)) => eprintln!("{}: {words} in {}", described(object), place.display()),
            Ok(None) => {}
            Err(words) => bail!("{}: {words} in {}", described(object), place.display()),
        }
    }
    Ok(())
}

/// Bytes of a run and of its file system.
struct Room {
    /// What the run takes at its fullest.
    needed: u64,
    /// What of it is there already.
    there: u64,
    /// What the file system has left.
    free: u64,
}

impl Room {
    /// Words about it; none for a run that has everything; an error when it cannot fit.
    fn judge(&self) -> Result<Option<String>, String> {
        let missing = self.needed.saturating_sub(self.there);
        let [needed, there, free] = [self.needed, self.there, self.free].map(text::bytes);
        if missing > self.free {
            let missing = text::bytes(missing);
            return Err(format!(
                "needs {missing} more of disk, {free} are free (make room, or give another folder with --out)"
            ));
        }
        Ok((missing > 0).then(|| format!("needs up to {needed} of disk, {there} are there, {free} are free")))
    }
}

/// The nearest folder above that exists.
fn existing(path: &Path) -> PathBuf {
    path.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/")).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_missing_must_fit() {
        let judge = |needed, there, free| Room { needed, there, free }.judge();
        assert!(
            judge(6_000_000_000, 0, 5_900_000_000)
                .unwrap_err()
                .contains("needs 6.0 GB more of disk, 5.9 GB are free")
        );
        assert!(judge(6_000_000_000, 200_000_000, 5_900_000_000).unwrap().unwrap().contains("up to 6.0 GB"));
        assert_eq!(judge(6, 7, 0), Ok(None));
    }
}
