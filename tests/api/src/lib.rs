//! A real control plane for tests, and what plays the kubelet.
//!
//! Invariant: each test has a namespace and operators of its own; the control plane is started once
//! for a test binary and dies with it.
#![allow(clippy::unwrap_used)]

mod control_plane;
mod kubelet;
mod process;
mod sandbox;

pub use control_plane::ControlPlane;
pub use kubelet::End;
pub use process::Process;
pub use sandbox::{Sandbox, extension_run, synthesis_job};
