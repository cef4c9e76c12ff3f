//! The leak check: does a text repeat 12 words in a row of the held-out text, or hold a sentence that
//! the evaluation hides there?
//!
//! Licence notes and badges stand in every second document and are nobody's: a phrase that occurs
//! in several groups on the synthesis side is boilerplate and gives nothing away.

use std::collections::{BTreeSet, HashMap};

use crate::needles;
use crate::shingles::{shingles, shingles_of, words};

/// From this many groups on a phrase is boilerplate.
const BOILERPLATE_GROUPS: usize = 4;

/// Collects the phrases of the held-out text and where else they occur.
#[derive(Debug, Default)]
pub struct PhrasesBuilder {
    groups: HashMap<u64, BTreeSet<u32>>,
    numbers: HashMap<String, u32>,
}

impl PhrasesBuilder {
    /// The phrases of these held-out texts.
    pub fn new<'a>(held_out: impl IntoIterator<Item = &'a str>) -> PhrasesBuilder {
        let mut builder = PhrasesBuilder::default();
        for text in held_out {
            for hash in shingles(text) {
                builder.groups.entry(hash).or_default();
            }
        }
        builder
    }

    /// Notes the phrases that a document of the synthesis side shares.
    pub fn observe(&mut self, group: &str, text: &str) {
        if self.groups.is_empty() {
            return;
        }
        let next = self.numbers.len() as u32;
        let number = *self.numbers.entry(group.to_owned()).or_insert(next);
        for hash in shingles(text) {
            if let Some(groups) = self.groups.get_mut(&hash)
                && groups.len() < BOILERPLATE_GROUPS
            {
                groups.insert(number);
            }
        }
    }

    /// The phrases that belong to the held-out text.
    pub fn finish(self) -> Phrases {
        let mut hashes: Vec<u64> = self
            .groups
            .into_iter()
            .filter(|(_, groups)| groups.len() < BOILERPLATE_GROUPS)
            .map(|(hash, _)| hash)
            .collect();
        hashes.sort_unstable();
        Phrases { hashes }
    }
}

/// The phrases that no sample may contain: those of the held-out text, and always the sentences of
/// the evaluation's needles.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Phrases {
    hashes: Vec<u64>,
}

impl Phrases {
    /// How many phrases of the evaluation the text repeats: 12-word phrases of the held-out text, and
    /// needles.
    pub fn hits(&self, text: &str) -> usize {
        let words = words(text);
        let held_out = shingles_of(&words).iter().filter(|h| self.hashes.binary_search(h).is_ok()).count();
        held_out + needles::hits(&words)
    }

    /// Number of phrases of the held-out text.
    pub fn len(&self) -> usize {
        self.hashes.len()
    }

    /// Whether nothing is held out.
    pub fn is_empty(&self) -> bool {
        self.hashes.is_empty()
    }

    /// Little-endian hashes, ascending.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.hashes.iter().flat_map(|h| h.to_le_bytes()).collect()
    }

    /// Reads what [`Phrases::to_bytes`] wrote; `None` for another length.
    pub fn from_bytes(bytes: &[u8]) -> Option<Phrases> {
        let (chunks, rest) = bytes.as_chunks::<8>();
        rest.is_empty().then(|| Phrases { hashes: chunks.iter().map(|c| u64::from_le_bytes(*c)).collect() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_copied_phrases_but_not_boilerplate() {
        let own = "one two three four five six seven eight nine ten eleven twelve thirteen";
        let licence = "licensed under either of apache license version two or mit at your option";
        let held = format!("{own}\n\n{licence}");
        let mut builder = PhrasesBuilder::new([held.as_str()]);
        for group in ["a", "b", "c", "d"] {
            builder.observe(group, &format!("{group} is a crate. {licence}"));
        }
        builder.observe("e", &format!("copied: {own}"));
        let phrases = builder.finish();
        assert_eq!(phrases.hits(&format!("see here: {}!", own.to_uppercase())), 2);
        assert_eq!(phrases.hits(licence), 0);
        // A needle's sentence is shorter than a phrase of the held-out text.
        let needle = needles::sentence("harbour", "red");
        assert_eq!(phrases.hits(&format!("{licence}\n{needle}\n{own}")), 3);
        assert_eq!(Phrases::default().hits(&needle), 1, "needles count without held-out text, too");
        assert_eq!(Phrases::from_bytes(&phrases.to_bytes()), Some(phrases));
        assert_eq!(Phrases::from_bytes(&[1, 2, 3]), None);
    }
}
