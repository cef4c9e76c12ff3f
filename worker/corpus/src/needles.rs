//! The sentences that an evaluation hides in held-out text. They stand here, and not with the
//! evaluation, because whoever makes training data must keep them out.
//!
//! Invariant: every question has [`QUESTION_WORDS`] words, so one pass over a text finds all of them.

use std::sync::LazyLock;

use crate::shingles::{sequences, words};

/// What a secret belongs to; one for each needle.
pub const KEYS: [&str; 8] =
    ["harbour", "library", "garden", "bridge", "station", "market", "museum", "theatre"];

/// Secrets to choose from: common words, as a tokenizer may begin several of them alike.
pub const ANSWERS: [&str; 24] = [
    "red",
    "blue",
    "green",
    "yellow",
    "black",
    "white",
    "silver",
    "orange",
    "purple",
    "brown",
    "pink",
    "gold",
    "amber",
    "cherry",
    "indigo",
    "violet",
    "maroon",
    "navy",
    "turquoise",
    "lavender",
    "emerald",
    "copper",
    "jade",
    "ivory",
];

/// Words of a question.
const QUESTION_WORDS: usize = 7;

/// The sentence that is hidden in the text.
#[must_use]
pub fn sentence(key: &str, answer: &str) -> String {
    format!("{} {answer}.", question(key))
}

/// What is asked for: the sentence without its answer.
fn question(key: &str) -> String {
    format!("The secret colour of the {key} is")
}

/// How many needles' questions the text with these words holds, with any answer.
pub(crate) fn hits(text: &[u64]) -> usize {
    static QUESTIONS: LazyLock<Vec<u64>> = LazyLock::new(|| {
        KEYS.iter().flat_map(|key| sequences(&words(&question(key)), QUESTION_WORDS)).collect()
    });
    sequences(text, QUESTION_WORDS).iter().filter(|hash| QUESTIONS.contains(hash)).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_sentence_is_found_however_it_is_written() {
        for key in KEYS {
            assert_eq!(words(&question(key)).len(), QUESTION_WORDS, "{key}");
            for answer in ANSWERS {
                let text = format!("Before it.\n{}\nAfter it.", sentence(key, answer));
                for text in [text.clone(), text.to_uppercase(), text.replace(' ', "\n  ")] {
                    assert_eq!(hits(&words(&text)), 1, "{text}");
                }
            }
        }
        for fine in
            ["", "The secret colour", "The secret colour of the harbour", "The colour of the harbour is red."]
        {
            assert_eq!(hits(&words(fine)), 0, "{fine}");
        }
    }
}
