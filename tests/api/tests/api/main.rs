//! Courses of objects on a real API: each step changes the world, and says what is then to be seen.
#![allow(clippy::unwrap_used)]

mod courses;
mod leader;
mod obstacles;
