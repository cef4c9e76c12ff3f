//! The needles: short sentences that give a key a secret, and the question that asks for it.
//!
//! Invariant: among the answers of one plan no two begin with the same token, so one prediction
//! after the question tells which answer is the most likely.

use longstrap_corpus::needles::{ANSWERS as WORDS, KEYS, sentence};

use crate::error::{EvaluationError, Result};

/// Turns plain text into tokens, none of them control tokens.
pub type Encode<'a> = &'a dyn Fn(&str) -> Result<Vec<u32>>;

/// Answers that the model chooses from: the first of the words that the tokenizer tells apart.
pub(crate) const ANSWERS: usize = 8;

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
