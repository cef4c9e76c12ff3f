//! Courses of objects on a real API: each step changes the world, and says what is then to be seen.
#![allow(clippy::unwrap_used)]

mod cli;
mod courses;
mod crashes;
mod edits;
mod exits;
mod leader;
mod nodes;
mod obstacles;
mod outages;
mod reasons;
mod upgrade;
mod validation;
