//! The model that is to be trained, as far as synthesis needs it: its tokenizer counts, its chat
//! template renders. Every length of a sample is a count of what training will see.

use std::path::Path;

use longstrap_model::{ChatTemplate, Encoded, Message, ModelError, Tokenizer};

/// Tokenizer and chat template of the target model.
#[derive(Debug)]
pub struct Target {
    tokenizer: Tokenizer,
    template: ChatTemplate,
}

impl Target {
    /// Reads both from a model folder.
    ///
    /// # Errors
    /// Missing or malformed files.
    pub fn load(dir: &Path) -> Result<Target, ModelError> {
        let tokenizer = Tokenizer::load(dir)?;
        let template = ChatTemplate::load(dir, &tokenizer)?;
        Ok(Target { tokenizer, template })
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// The chat template.
    pub fn template(&self) -> &ChatTemplate {
        &self.template
    }

    /// Tokens of a plain text.
    ///
    /// # Errors
    /// Only what the tokenizer cannot encode at all.
    pub fn tokens(&self, text: &str) -> Result<usize, ModelError> {
        Ok(self.tokenizer.encode_ordinary(text)?.len())
    }

    /// A plain text as tokens with their places.
    ///
    /// # Errors
    /// As [`Target::tokens`].
    pub fn encode(&self, text: &str) -> Result<Encoded, ModelError> {
        self.tokenizer.encode_with_offsets(text)
    }

    /// Tokens of a conversation as training will see it.
    ///
    /// # Errors
    /// As the template refuses it.
    pub fn rendered(&self, messages: &[Message]) -> Result<usize, ModelError> {
        Ok(self.template.render(&self.tokenizer, messages)?.ids.len())
    }
}
