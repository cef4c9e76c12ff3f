//! A folder as one object: names, sizes, then the bytes. Object storage then needs one put and
//! one get for an index of a dozen files, and a torn copy is seen.
//!
//! Layout: magic, u32 length of the header, header (JSON list of `[name, size]`), files in order.

use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Write};
use std::path::Path;

use crate::error::{CorpusError, Result};

const MAGIC: &[u8; 8] = b"LSARCH01";

/// Packs the plain files of `dir` (no sub-folders) into `out`, by name.
pub fn pack_dir(dir: &Path, out: &Path) -> Result<()> {
    let mut files: Vec<(String, u64)> = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(CorpusError::scratch(dir))? {
        let entry = entry.map_err(CorpusError::scratch(dir))?;
        let meta = entry.metadata().map_err(CorpusError::scratch(entry.path()))?;
        // Lock files of the index writer are empty and mean nothing elsewhere.
        let name = entry.file_name().to_string_lossy().into_owned();
        if meta.is_file() && !name.ends_with(".lock") {
            files.push((name, meta.len()));
        }
    }
    files.sort();
    let write = || -> std::io::Result<()> {
        let header = serde_json::to_vec(&files)?;
        let mut target = BufWriter::new(File::create(out)?);
        target.write_all(MAGIC)?;
        target.write_all(&(header.len() as u32).to_le_bytes())?;
        target.write_all(&header)?;
        for (name, size) in &files {
            let copied = std::io::copy(&mut File::open(dir.join(name))?, &mut target)?;
            if copied != *size {
                return Err(std::io::Error::other(format!("{name} changed while packed")));
            }
        }
        target.flush()
    };
    write().map_err(CorpusError::scratch(out))
}

/// Unpacks an archive into `dir`, which is created; `object` names the archive in errors.
pub fn unpack(object: &str, archive: &Path, dir: &Path) -> Result<()> {
    let damaged = |message: String| CorpusError::Damaged { object: object.to_owned(), message };
    let mut source = BufReader::new(File::open(archive).map_err(CorpusError::scratch(archive))?);
    let mut start = [0u8; 12];
    source.read_exact(&mut start).map_err(|_| damaged("too short for an archive".into()))?;
    if &start[..8] != MAGIC {
        return Err(damaged("does not begin as an archive of ours".into()));
    }
    let length = u32::from_le_bytes([start[8], start[9], start[10], start[11]]);
    let mut header = Vec::new();
    (&mut source).take(u64::from(length)).read_to_end(&mut header).map_err(CorpusError::scratch(archive))?;
    let files: Vec<(String, u64)> =
        serde_json::from_slice(&header).map_err(|e| damaged(format!("bad header: {e}")))?;
    std::fs::create_dir_all(dir).map_err(CorpusError::scratch(dir))?;
    for (name, size) in files {
        if name.is_empty() || name.contains(['/', '\\']) || name == ".." {
            return Err(damaged(format!("file name {name:?} is not a plain name")));
        }
        let path = dir.join(&name);
        let mut target = BufWriter::new(File::create(&path).map_err(CorpusError::scratch(&path))?);
        let copied =
            std::io::copy(&mut (&mut source).take(size), &mut target).map_err(CorpusError::scratch(&path))?;
        target.flush().map_err(CorpusError::scratch(&path))?;
        if copied != size {
            return Err(damaged(format!("ends inside {name}: {copied} of {size} bytes")));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip_and_torn_archives() {
        let tmp = tempfile::tempdir().unwrap();
        let from = tmp.path().join("from");
        std::fs::create_dir(&from).unwrap();
        std::fs::write(from.join("b"), b"").unwrap();
        std::fs::write(from.join("a.idx"), vec![7u8; 10_000]).unwrap();
        std::fs::write(from.join("writer.lock"), b"").unwrap();
        let archive = tmp.path().join("x.arc");
        pack_dir(&from, &archive).unwrap();
        let to = tmp.path().join("to");
        unpack("x", &archive, &to).unwrap();
        assert_eq!(std::fs::read(to.join("a.idx")).unwrap(), vec![7u8; 10_000]);
        assert!(to.join("b").exists() && !to.join("writer.lock").exists());

        let whole = std::fs::read(&archive).unwrap();
        for cut in [0, 5, 11, 20, 60, whole.len() - 1] {
            std::fs::write(&archive, &whole[..cut]).unwrap();
            assert!(unpack("x", &archive, &to).is_err(), "cut at {cut}");
        }
        let evil = br#"[["../x",1]]"#;
        let mut bytes = MAGIC.to_vec();
        bytes.extend((evil.len() as u32).to_le_bytes());
        bytes.extend(evil);
        bytes.push(1);
        std::fs::write(&archive, bytes).unwrap();
        let error = unpack("corpus/index", &archive, &to).unwrap_err();
        assert!(error.to_string().contains("corpus/index"), "{error}");
    }
}
