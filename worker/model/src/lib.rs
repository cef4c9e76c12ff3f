//! Model folders: configuration, tokenizer, chat template, GGUF and Hugging Face import, export.
