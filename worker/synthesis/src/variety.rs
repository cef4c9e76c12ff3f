//! The weighted lists from which task, tone, length of the answer and place of the instruction are
//! drawn. They are resolved into `run.json`: changing one changes the fingerprint.

use serde::{Deserialize, Serialize};

use crate::seed::Draw;

/// Where the instruction stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Place {
    /// Before the documents.
    Before,
    /// After the documents.
    After,
}

/// One entry of a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Choice<T> {
    /// What is chosen.
    pub value: T,
    /// How often, against the others.
    pub weight: u32,
}

/// All lists.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Variety {
    /// What kind of instruction is asked for (capable generators).
    pub tasks: Vec<Choice<String>>,
    /// What is asked for besides the question (embedded generator).
    pub requests: Vec<Choice<String>>,
    /// Tone of instruction and answer.
    pub tones: Vec<Choice<String>>,
    /// Length of the answer.
    pub answers: Vec<Choice<String>>,
    /// Where the instruction stands.
    pub places: Vec<Choice<Place>>,
}

impl Default for Variety {
    fn default() -> Variety {
        let list = |entries: &[(u32, &str)]| {
            entries
                .iter()
                .map(|(weight, text)| Choice { value: (*text).to_owned(), weight: *weight })
                .collect()
        };
        Variety {
            tasks: list(&[
                (3, "a question whose answer has to be put together from facts in several documents"),
                (2, "an instruction to compare two or more things of this kind, by named criteria"),
                (2, "an instruction to write a survey of one subject that runs through the collection"),
                (
                    2,
                    "an instruction to explain step by step how something is done, drawing on several sources",
                ),
                (1, "an instruction to list and explain everything in the collection that meets a condition"),
                (1, "an instruction to weigh the arguments for and against a decision"),
                (1, "an instruction to trace causes and consequences across several documents"),
            ]),
            requests: list(&[
                (2, "Quote the passages of the documents that help to answer this."),
                (1, "Answer with passages from all of the documents, word for word."),
                (1, "Go through the documents and quote what each of them says on it."),
            ]),
            tones: list(&[(4, "plain"), (2, "formal"), (2, "friendly"), (1, "terse"), (1, "curious")]),
            answers: list(&[
                (2, "one paragraph"),
                (3, "three to five paragraphs"),
                (2, "a structured text with headings"),
                (1, "a few sentences"),
            ]),
            places: vec![
                Choice { value: Place::Before, weight: 1 },
                Choice { value: Place::After, weight: 1 },
            ],
        }
    }
}

/// Draws one entry.
pub fn choose<T: Clone>(draw: &mut Draw, list: &[Choice<T>]) -> Option<T> {
    draw.pick(list, |choice| choice.weight).map(|choice| choice.value.clone())
}
