//! The operator: observe, plan, apply, status.
//!
//! [`plan::plan`] is pure: what should be, from what is. The operator and `longstrap local run`
//! both execute its plans, so a run behaves alike in a cluster and on one machine.
#![cfg_attr(test, allow(clippy::unwrap_used))]

#[cfg(feature = "cluster")]
pub mod cluster;
pub mod plan;

pub use plan::{
    Child, ChildRef, Event, NewJob, ObjectStatus, Obstacle, OperatorConfig, Plan, PodRef, World, plan,
};
