//! Whether the disks have room for what the objects will write, before anything starts.
//!
//! Only what is known beforehand is counted: storage on this machine, corpora and models that lie
//! here. An object whose result is published needs nothing more.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use longstrap_crds::Object;
use longstrap_memory_plan::human;

use super::outcome::described;
use super::restart::{Current, Request};
use super::uris::local_path;
use crate::estimate;

/// Says what the objects need on each disk of this machine and refuses where there is less.
/// Those that `restart` concerns will start over beside what is there; the others go on with their
/// newest run.
pub(crate) async fn check(objects: &[Object], restart: Option<&Request>) -> Result<()> {
    let mut disks: BTreeMap<u64, (PathBuf, Vec<Need>)> = BTreeMap::new();
    for object in objects {
        let Some(folder) = local_path(&object.common().storage.uri) else { continue };
        let Some(needed) = estimate::disk(object, objects) else { continue };
        // A storage that cannot be read is for `prepare` to speak about.
        let current = match restart.is_some_and(|restart| restart.concerns(object)) {
            true => None,
            false => Current::of(object).await.ok(),
        };
        if current.as_ref().is_some_and(|run| run.finished) {
            continue;
        }
        let place = existing(&folder);
        let device = place.metadata().with_context(|| place.display().to_string())?.dev();
        let run = current.and_then(|run| run.store.local_root());
        let there = run.map_or(0, |folder| estimate::bytes_below(&folder));
        let need = Need { what: described(object), needed, there };
        disks.entry(device).or_insert((place, Vec::new())).1.push(need);
    }
    for (place, needs) in disks.into_values() {
        let disk = nix::sys::statvfs::statvfs(&place)
            .with_context(|| format!("asking for the free space of {}", place.display()))?;
        let free = disk.blocks_available().saturating_mul(disk.fragment_size());
        match judge(&needs, free) {
            Ok(words) => eprintln!("{}: {words}", place.display()),
            Err(words) => bail!("{}: {words}", place.display()),
        }
    }
    Ok(())
}

/// Bytes of one object.
struct Need {
    what: String,
    /// What it takes at its fullest.
    needed: u64,
    /// What of it is there already.
    there: u64,
}

/// Words about what is needed on a disk; an error when it cannot fit.
fn judge(needs: &[Need], free: u64) -> Result<String, String> {
    let sum = |of: fn(&Need) -> u64| needs.iter().map(of).fold(0, u64::saturating_add);
    let missing = sum(|need| need.needed.saturating_sub(need.there));
    let each: Vec<String> =
        needs.iter().map(|need| format!("{} {}", need.what, human(need.needed))).collect();
    let each = each.join(", ");
    if missing > free {
        return Err(format!(
            "needs {} more of disk ({each}), {} are free (make room, or give another folder with --out)",
            human(missing),
            human(free)
        ));
    }
    let [all, there, free] = [sum(|need| need.needed), sum(|need| need.there), free].map(human);
    Ok(format!("needs up to {all} of disk ({each}), {there} are there, {free} are free"))
}

/// The nearest folder above that exists.
fn existing(path: &Path) -> PathBuf {
    path.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/")).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_all_of_them_miss_must_fit_together() {
        let need = |what: &str, needed, there| Need { what: what.into(), needed, there };
        let both = [need("data", 1_000_000_000, 0), need("run", 6_000_000_000, 2_000_000_000)];
        let words = judge(&both, 4_900_000_000).unwrap_err();
        assert!(
            words.starts_with("needs 5.00 GB more of disk (data 1.00 GB, run 6.00 GB), 4.90 GB are free"),
            "{words}"
        );
        let words = judge(&both, 5_000_000_000).unwrap();
        assert!(words.starts_with("needs up to 7.00 GB of disk") && words.contains("2.00 GB are there"));
        // What one has too much is not given to the other.
        assert!(judge(&[need("a", 5, 0), need("b", 1, 9)], 4).is_err());
    }
}
