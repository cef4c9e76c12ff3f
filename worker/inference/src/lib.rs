//! The embedded generator: prefill, batched decoding over a KV cache, sampling and scoring.
