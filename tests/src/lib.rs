//! Cross-crate tests: end to end, faults, figures.
