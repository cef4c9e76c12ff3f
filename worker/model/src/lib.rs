//! Model folders in the Hugging Face layout: configuration, tokenizer, chat template, weights;
//! import from GGUF and export. Pure functions over files: no network, no clock, no tensors.
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod chat;
mod check;
mod config;
mod error;
mod export;
mod gguf;
mod import;
mod jinja;
mod rope;
mod special;
pub mod testing;
mod tokenizer;
mod weights;

pub use chat::{ChatTemplate, LossOn, Message, Rendered, Role, Turn};
pub use check::{Checked, check_hf};
pub use config::{Dtype, ModelConfig, TensorSpec};
pub use error::{ModelError, Result};
pub use export::{Export, ExportedFile, MAX_SHARD_BYTES, export};
pub use import::{Imported, import_gguf};
pub use rope::{Llama3Scaling, Rope, RopeScaling};
pub use special::SpecialTokens;
pub use tokenizer::{Control, Encoded, Tokenizer};
pub use weights::Weights;
