//! JSON Lines, plain, gzip or zstd: one object a line.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use flate2::read::MultiGzDecoder;
use serde_json::{Map, Value};

use super::{Place, Sink};
use crate::document::{RawDocument, Source};
use crate::error::Result;

pub(super) fn read(place: Place<'_>, source: &Source, path: &Path, sink: Sink<'_>) -> Result<()> {
    let mut reader = open(path).map_err(|e| place.file(e))?;
    let mut line = Vec::new();
    let mut row = 0;
    loop {
        row += 1;
        line.clear();
        let n = reader
            .read_until(b'\n', &mut line)
            .map_err(|e| place.row(row, format!("cannot be read ({e}): the file is damaged or cut off")))?;
        if n == 0 {
            return Ok(());
        }
        if line.trim_ascii().is_empty() {
            continue;
        }
        let record: Map<String, Value> =
            serde_json::from_slice(&line).map_err(|e| place.row(row, format!("is no JSON object: {e}")))?;
        sink(document(source, row, record).map_err(|message| place.row(row, message))?)?;
    }
}

/// The kind of compression is read from the content: a URI may name a file by any name.
fn open(path: &Path) -> std::io::Result<Box<dyn BufRead>> {
    let mut file = File::open(path)?;
    let mut start = [0u8; 4];
    let mut have = 0;
    while have < start.len() {
        match file.read(&mut start[have..])? {
            0 => break,
            n => have += n,
        }
    }
    let whole = BufReader::new(File::open(path)?);
    Ok(match &start[..have] {
        [0x1f, 0x8b, ..] => Box::new(BufReader::new(MultiGzDecoder::new(whole))),
        [0x28, 0xb5, 0x2f, 0xfd] => Box::new(BufReader::new(zstd::Decoder::with_buffer(whole)?)),
        _ => Box::new(whole),
    })
}

fn document(source: &Source, row: u64, mut record: Map<String, Value>) -> Result<RawDocument, String> {
    let text = match record.remove(&source.text_field) {
        Some(Value::String(text)) => Some(text),
        Some(Value::Null) => None,
        Some(_) => return Err(format!("field `{}` is no string", source.text_field)),
        None => {
            let there: Vec<&str> = record.keys().map(String::as_str).take(20).collect();
            return Err(format!(
                "has no field `{}` (set textField; fields: {})",
                source.text_field,
                there.join(", ")
            ));
        }
    };
    let group = match source.group_field.as_ref() {
        None => None,
        Some(field) => match record.get(field) {
            Some(Value::String(group)) => Some(group.clone()),
            Some(Value::Number(group)) => Some(group.to_string()),
            Some(Value::Null) | None => None,
            Some(_) => return Err(format!("field `{field}` is neither a string nor a number")),
        },
    };
    let title = match record.remove("title") {
        Some(Value::String(title)) => title,
        _ => String::new(),
    };
    Ok(RawDocument { row, group, title, text })
}
