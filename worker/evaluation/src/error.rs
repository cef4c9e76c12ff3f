//! What can go wrong in an evaluation, told to the person who started the run.

/// An error of planning, scoring or reporting.
#[derive(Debug, thiserror::Error)]
pub enum EvaluationError {
    /// The window cannot hold the passages and questions.
    #[error(
        "a window of {window} tokens is too small to evaluate: {why}; take a longer contextLength, or leave \
         out needle or recall"
    )]
    WindowTooSmall {
        /// The window asked for.
        window: usize,
        /// What does not fit.
        why: String,
    },
    /// The held-out documents have fewer tokens than one row of the window needs.
    #[error(
        "the held-out text has {have} tokens, and evaluating a window of {window} needs {need}: \
         raise heldOut.tokens of the SynthesisJob to at least the window, or leave evaluation out"
    )]
    TooLittleText {
        /// Tokens of all held-out documents.
        have: usize,
        /// Tokens needed.
        need: usize,
        /// The window asked for.
        window: usize,
    },
    /// The tokenizer begins two of the needles' answers with the same token.
    #[error(
        "this tokenizer tells only {found} of the needles' answers apart by their first token, {need} are \
         needed: leave out needle"
    )]
    AnswersAlike {
        /// Answers with a first token of their own.
        found: usize,
        /// Answers needed.
        need: usize,
    },
    /// The held-out text or the questions could not be turned into tokens.
    #[error(transparent)]
    Tokenizer(#[from] longstrap_model::ModelError),
    /// The model could not be scored.
    #[error("scoring failed while {phase}")]
    Scorer {
        /// What was being scored.
        phase: crate::Phase,
        /// The scorer's own error.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The scorer gave another number of values than it was asked for.
    #[error("while {phase} the scorer gave {got} values for {want} tokens")]
    Shape {
        /// What was being scored.
        phase: crate::Phase,
        /// Values given.
        got: usize,
        /// Values wanted.
        want: usize,
    },
    /// A loss or log-probability is not a number.
    #[error("while {phase} the model gave a loss that is not finite at token {index}")]
    NotFinite {
        /// What was being scored.
        phase: crate::Phase,
        /// Index of the value.
        index: usize,
    },
    /// `results.json` cannot be read.
    #[error("results.json: {0}")]
    Malformed(#[from] serde_json::Error),
    /// `results.json` was written by a newer version.
    #[error(
        "results.json has format version {0}, this version reads {known}",
        known = crate::FORMAT_VERSION
    )]
    FormatTooNew(u32),
    /// The report's template failed.
    #[error("the report: {0}")]
    Report(#[from] minijinja::Error),
}

/// The result of an evaluation step.
pub type Result<T> = std::result::Result<T, EvaluationError>;
