//! The evaluation with a toy model that copies whatever it saw within its reach, and with a real one.
#![allow(clippy::unwrap_used)]

mod comparison;
mod layout;
mod measure;
mod report;
mod results;
mod toy;
