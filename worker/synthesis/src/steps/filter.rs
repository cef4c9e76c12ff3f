//! The last look at a candidate: answers that are no answers, that run in circles, or that hold
//! what is kept for evaluation.

use std::collections::HashSet;

use longstrap_corpus::{Phrases, words};

use crate::sample::Dropped;

/// How refusals begin, lower case.
const REFUSALS: &[&str] = &[
    "i'm sorry",
    "i am sorry",
    "sorry, but",
    "i cannot",
    "i can't",
    "as an ai",
    "as a language model",
    "there is no information",
    "the notes do not",
    "the notes don't",
];
/// Words of the sequences that are looked for twice.
const SEQUENCE: usize = 8;
/// Share of repeated sequences from which a text runs in circles.
const CIRCLES: f64 = 0.3;

/// Judges a response with its instruction. `quoted`: the response quotes documents, whose own
/// repetitions are theirs.
///
/// # Errors
/// Why the candidate is dropped.
pub(crate) fn filter(
    instruction: &str,
    response: &str,
    quoted: bool,
    phrases: &Phrases,
) -> Result<(), Dropped> {
    let start: String = response.chars().take(60).collect::<String>().to_lowercase();
    if REFUSALS.iter().any(|refusal| start.starts_with(refusal)) {
        return Err(Dropped::Refusal);
    }
    if words(response).len() < 5 {
        return Err(Dropped::BadResponse);
    }
    if !quoted && repeated(response) > CIRCLES {
        return Err(Dropped::Repetitive);
    }
    if phrases.hits(response) + phrases.hits(instruction) > 0 {
        return Err(Dropped::HeldOutOverlap);
    }
    Ok(())
}

/// Share of a text's word sequences that occurred before.
fn repeated(text: &str) -> f64 {
    let words = words(text);
    let sequences: Vec<&[u64]> = words.windows(SEQUENCE).collect();
    let different: HashSet<&[u64]> = sequences.iter().copied().collect();
    match sequences.len() {
        0 => 0.0,
        n => (n - different.len()) as f64 / n as f64,
    }
}

#[cfg(test)]
mod tests {
    use longstrap_corpus::PhrasesBuilder;

    use super::*;

    #[test]
    fn bad_candidates() {
        let held = "one two three four five six seven eight nine ten eleven twelve thirteen";
        let phrases = PhrasesBuilder::new([held]).finish();
        let fine = "The first crate reads files, the second one writes them to disk.";
        let circle = "and then it reads the file again and ".repeat(20);
        let leak = format!("It says: {held}.");
        let needle = format!("{fine} {}", longstrap_corpus::needles::sentence("harbour", "red"));
        for (instruction, response, quoted, want) in [
            ("Compare.", fine, false, Ok(())),
            (
                "Compare.",
                "I'm sorry, but I cannot help with this request today.",
                false,
                Err(Dropped::Refusal),
            ),
            ("Compare.", "Yes, it is.", false, Err(Dropped::BadResponse)),
            ("Compare.", &circle, false, Err(Dropped::Repetitive)),
            ("Compare.", &circle, true, Ok(())),
            ("Compare.", &leak, false, Err(Dropped::HeldOutOverlap)),
            (&leak, fine, true, Err(Dropped::HeldOutOverlap)),
            ("Compare.", &needle, false, Err(Dropped::HeldOutOverlap)),
            (&needle, fine, true, Err(Dropped::HeldOutOverlap)),
        ] {
            assert_eq!(filter(instruction, response, quoted, &phrases), want, "{response:.30}");
        }
    }
}
