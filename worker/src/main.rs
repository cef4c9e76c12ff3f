//! The one binary that every pod runs: a subcommand for each step.

fn main() {}
