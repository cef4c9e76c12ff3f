//! The types that travel through a corpus: what a reader yields, what stays after cleaning.

use serde::{Deserialize, Serialize};

/// File format of a corpus.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Format {
    /// `*.parquet`, read by row group.
    Parquet,
    /// `*.jsonl`, `*.ndjson`, also with `.gz` or `.zst`.
    JsonLines,
    /// `*.txt`, `*.md`, `*.markdown`: one document a file.
    Text,
}

impl Format {
    /// The endings of the format, for messages.
    pub fn endings(self) -> &'static str {
        match self {
            Format::Parquet => ".parquet",
            Format::JsonLines => ".jsonl, .ndjson (or these with .gz, .zst)",
            Format::Text => ".txt, .md, .markdown",
        }
    }

    /// Whether a file of this name belongs to the format.
    pub fn accepts(self, key: &str) -> bool {
        let lower = key.to_ascii_lowercase();
        match self {
            Format::Parquet => lower.ends_with(".parquet"),
            Format::JsonLines => {
                let plain =
                    lower.strip_suffix(".gz").or_else(|| lower.strip_suffix(".zst")).unwrap_or(&lower);
                plain.ends_with(".jsonl") || plain.ends_with(".ndjson")
            }
            Format::Text => [".txt", ".md", ".markdown"].iter().any(|ending| lower.ends_with(ending)),
        }
    }
}

/// One corpus of a job: its files, in the order in which they are read (by key).
#[derive(Debug, Clone)]
pub struct Source {
    /// Name in the manifest.
    pub name: String,
    /// Where its files are, for messages: a key is relative to it.
    pub uri: String,
    /// Format of the files.
    pub format: Format,
    /// Field (JSON) or column (parquet) with the text.
    pub text_field: String,
    /// Field or column with the group; none: every document is its own group.
    pub group_field: Option<String>,
    /// Keys of the files, sorted; one empty key: the URI itself is the file.
    pub files: Vec<String>,
}

impl Source {
    /// URI of the file `key`, for messages.
    pub fn uri_of(&self, key: &str) -> String {
        match key {
            "" => self.uri.clone(),
            key => format!("{}/{key}", self.uri.trim_end_matches('/')),
        }
    }
}

/// One record as a reader yields it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawDocument {
    /// Row in its file, from 1.
    pub row: u64,
    /// Value of the group field.
    pub group: Option<String>,
    /// Value of a field `title`; empty: none.
    pub title: String,
    /// The text; `None`: the record has a null there.
    pub text: Option<String>,
}

/// A cleaned document.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Document {
    /// First 16 hex digits of the sha256 of the text: names do not move when files do.
    pub id: String,
    /// Group: documents of one group stand on one side of the held-out split.
    pub group: String,
    /// Name of its corpus in the manifest.
    pub source: String,
    /// Title, never empty: the record's own, else the first heading or line.
    pub title: String,
    /// The text.
    pub text: String,
    /// Length in tokens of the target tokenizer, plain.
    pub tokens: u32,
}

/// Longest title in characters: it is repeated in every sample that holds the document.
const MAX_TITLE: usize = 80;

/// The title of a text: the record's own, else its first markdown heading, else its first line.
pub(crate) fn title_of(own: &str, text: &str) -> String {
    let heading = || {
        text.lines()
            .take(40)
            .map(str::trim)
            .find(|line| line.starts_with('#') && line.trim_start_matches('#').starts_with(' '))
            .map(|line| line.trim_start_matches('#'))
    };
    let first_line = || text.lines().map(str::trim).find(|line| !line.is_empty());
    let picked = Some(own)
        .filter(|title| !title.trim().is_empty())
        .or_else(heading)
        .or_else(first_line)
        .unwrap_or("untitled");
    let clean: String = picked.chars().filter(|c| !matches!(c, '`' | '*' | '#' | '\n' | '\r')).collect();
    let title: String = clean.trim().chars().take(MAX_TITLE).collect();
    match title.trim() {
        "" => "untitled".to_owned(),
        title => title.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn titles_and_file_endings() {
        for (own, text, want) in [
            ("Own", "# Heading\nx", "Own"),
            ("", "\nintro\n\n## `tokio` *runtime*\n", "tokio runtime"),
            ("", "#hashtag first\nrest", "hashtag first"),
            ("  ", "   \n", "untitled"),
        ] {
            assert_eq!(title_of(own, text), want);
        }
        assert_eq!(title_of("", &"x".repeat(200)).len(), MAX_TITLE);
        assert!(Format::JsonLines.accepts("a/b.JSONL.gz"));
        assert!(!Format::JsonLines.accepts("a/b.gz"));
        assert!(Format::Text.accepts("README.md"));
        assert!(!Format::Parquet.accepts("part.parquet.crc"));
    }
}
