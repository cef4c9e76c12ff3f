//! Text and markdown files: one document a file.

use std::path::Path;

use super::{Place, Sink};
use crate::document::RawDocument;
use crate::error::Result;

pub(super) fn read(place: Place<'_>, path: &Path, sink: Sink<'_>) -> Result<()> {
    let bytes = std::fs::read(path).map_err(|e| place.file(e))?;
    // A stray binary file in a folder is dropped and counted, as a record without text is.
    let text = String::from_utf8(bytes).ok();
    sink(RawDocument { row: 1, group: None, title: String::new(), text })
}
