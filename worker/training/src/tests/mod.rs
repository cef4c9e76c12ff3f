//! The trainer against `transformers`, one rank against several, and what must not be needed.

mod breakages;
mod parity;
mod pipeline;
mod processes;
mod ranks;
mod recorder;
mod refusals;
mod resume;
mod rig;
mod scalar;
mod scalar_model;
mod world;
