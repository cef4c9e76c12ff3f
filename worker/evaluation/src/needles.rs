//! The needles: short sentences that give a key a secret, and the question that asks for it.
//!
//! Invariant: among the answers of one plan no two begin with the same token, so one prediction
//! after the question tells which answer is the most likely.

use crate::error::{EvaluationError, Result};

/// Turns plain text into tokens, none of them control tokens.
pub type Encode<'a> = &'a dyn Fn(&str) -> Result<Vec<u32>>;

/// Answers that the model chooses from.
pub(crate) const ANSWERS: usize = 8;

const KEYS: [&str; 8] = ["harbour", "library", "garden", "bridge", "station", "market", "museum", "theatre"];

/// Common words; the first [`ANSWERS`] that the tokenizer tells apart are used.
const WORDS: [&str; 24] = [
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

/// The sentence that is hidden in the text; asked at the end without its answer.
fn sentence(key: &str, answer: &str) -> String {
    format!("The secret colour of the {key} is {answer}.")
}

/// Every sentence that an evaluation may hide. Training data must not hold any of them.
#[must_use]
pub fn phrases() -> Vec<String> {
    KEYS.iter().flat_map(|key| WORDS.iter().map(move |word| sentence(key, word))).collect()
}

/// The texts of one key, in tokens.
pub(crate) struct Texts {
    /// For each answer the hidden sentence.
    pub(crate) sentences: Vec<Vec<u32>>,
    /// What is asked: the sentence up to its answer.
    pub(crate) question: Vec<u32>,
    /// The token with which each answer goes on after the question.
    pub(crate) candidates: Vec<u32>,
}

/// The texts of the first `count` keys with a common choice of answers.
pub(crate) fn texts(count: usize, encode: Encode<'_>) -> Result<Vec<Texts>> {
    let words = distinct_words(encode)?;
    KEYS.iter().take(count).map(|key| key_texts(key, &words, encode)).collect()
}

fn key_texts(key: &str, words: &[&str], encode: Encode<'_>) -> Result<Texts> {
    let sentences: Vec<Vec<u32>> =
        words.iter().map(|word| encode(&sentence(key, word))).collect::<Result<_>>()?;
    // Found from the whole sentences: cutting the text before the answer would cut tokens that
    // hold the space and the word together.
    let shared = common_prefix(&sentences);
    Ok(Texts {
        question: sentences[0][..shared].to_vec(),
        candidates: sentences.iter().map(|s| s[shared]).collect(),
        sentences,
    })
}

fn distinct_words(encode: Encode<'_>) -> Result<Vec<&'static str>> {
    let all: Vec<Vec<u32>> =
        WORDS.iter().map(|word| encode(&sentence(KEYS[0], word))).collect::<Result<_>>()?;
    let shared = common_prefix(&all);
    let mut seen = Vec::new();
    let mut words = Vec::new();
    for (word, ids) in WORDS.iter().zip(&all) {
        if ids.len() > shared && !seen.contains(&ids[shared]) {
            seen.push(ids[shared]);
            words.push(*word);
        }
    }
    if words.len() < ANSWERS {
        return Err(EvaluationError::AnswersAlike { found: words.len(), need: ANSWERS });
    }
    words.truncate(ANSWERS);
    Ok(words)
}

fn common_prefix(all: &[Vec<u32>]) -> usize {
    let shortest = all.iter().map(Vec::len).min().unwrap_or(0);
    (0..shortest).find(|&i| all.iter().any(|ids| ids[i] != all[0][i])).unwrap_or(shortest)
}
