//! Files of a run, compared by their bytes.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::SystemTime;

/// What must be equal whatever was killed, by path below the output folder: the published dataset,
/// model and results, and what decided them.
pub fn published(out: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    walk(out, out, &mut files);
    files.retain(|path, _| {
        let parts: Vec<&str> = path.split('/').collect();
        matches!(parts.as_slice(), [_, "dataset" | "model", ..] | [_, "run.json" | "results.json"])
    });
    files
}

/// Every file below a folder except the executor's own.
pub fn all(out: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    walk(out, out, &mut files);
    files
}

/// When each file below a folder was written last, the executor's own left out.
pub fn written(out: &Path) -> BTreeMap<String, SystemTime> {
    let computed = names(out).into_iter().filter(|name| !name.starts_with(".local/"));
    computed
        .filter_map(|name| Some((name.clone(), out.join(&name).metadata().ok()?.modified().ok()?)))
        .collect()
}

/// The first differences, one a line; empty for equal trees.
pub fn differences(left: &BTreeMap<String, Vec<u8>>, right: &BTreeMap<String, Vec<u8>>) -> String {
    let names = left.keys().chain(right.keys()).collect::<std::collections::BTreeSet<_>>();
    let describe = |files: &BTreeMap<String, Vec<u8>>, name: &str| {
        files.get(name).map_or("absent".to_owned(), |bytes| format!("{} bytes", bytes.len()))
    };
    let differ = names.into_iter().filter(|name| left.get(*name) != right.get(*name));
    differ
        .map(|name| {
            let at = left.get(name).zip(right.get(name)).map(|(left, right)| {
                let same = left.iter().zip(right).take_while(|(left, right)| left == right).count();
                format!(", first difference at byte {same}")
            });
            format!(
                "{name}: {} and {}{}\n",
                describe(left, name),
                describe(right, name),
                at.unwrap_or_default()
            )
        })
        .take(20)
        .collect()
}

/// Paths below a folder, relative to it; none when it is not there.
pub fn names(root: &Path) -> Vec<String> {
    let (mut found, mut folders) = (Vec::new(), vec![root.to_owned()]);
    while let Some(folder) = folders.pop() {
        // Folders come and go while a run works.
        for entry in std::fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok) {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if let Ok(name) = path.strip_prefix(root) {
                found.push(name.to_string_lossy().into_owned());
            }
        }
    }
    found
}

fn walk(root: &Path, folder: &Path, files: &mut BTreeMap<String, Vec<u8>>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            if path.file_name().unwrap() != ".local" {
                walk(root, &path, files);
            }
        } else {
            let name = path.strip_prefix(root).unwrap().to_string_lossy().into_owned();
            // A file may be renamed away between listing and reading: it was not final then.
            if let Ok(bytes) = std::fs::read(&path) {
                files.insert(name, bytes);
            }
        }
    }
}
