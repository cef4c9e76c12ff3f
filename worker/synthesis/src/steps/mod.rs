//! The steps of the workflow, each a function of its inputs and the generator's answers, each in a
//! file of its own and testable with a scripted generator.

pub(crate) mod assemble;
pub(crate) mod filter;
pub(crate) mod instruct;
pub(crate) mod long_output;
pub(crate) mod quote;
pub(crate) mod read;
pub(crate) mod respond;
pub(crate) mod retrieve;
