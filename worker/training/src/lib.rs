//! The trainer: row plan, forward, backward, optimizer, sequence parallelism, checkpoints.
