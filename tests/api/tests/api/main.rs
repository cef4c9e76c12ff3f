//! Courses of objects on a real API: each step changes the world, and says what is then to be seen.
//!
//! Breakages that these tests catch, each tried by hand: a status written without the version that
//! was planned from, children created before the attempt is stored, deletes without a UID, a fence
//! that is not asked.
#![allow(clippy::unwrap_used)]

mod courses;
mod leader;
mod obstacles;
