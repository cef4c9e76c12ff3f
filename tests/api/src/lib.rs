//! A real control plane for tests, and what plays the kubelet.
//!
//! Invariant: each test has a namespace and operators of its own; the control plane is started once
//! for a test binary and dies with it.
#![allow(clippy::unwrap_used)]

pub mod audit;
mod control_plane;
pub mod http;
mod kubelet;
mod process;
mod proxy;
pub mod roles;
mod sandbox;
pub mod scale;
pub mod seed;
pub mod snapshot;

pub use control_plane::{ControlPlane, User, apply_crd};
pub use kubelet::End;
pub use process::Process;
pub use proxy::{Proxy, Seen, Verdict};
pub use sandbox::{NEW, RUN, SYNTH, Sandbox, WORKER_IMAGE, extension_run, synthesis_job};
