//! The object storage protocol: data under unique names, committed by a small manifest.
//!
//! A thing is complete exactly when its manifest exists, and a manifest is written once, by a
//! conditional Create. An unclear answer to that Create decides nothing: the key is read.
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod attempt;
mod checkpoint;
mod client;
mod commit;
mod diff;
mod digest;
mod error;
mod garbage;
pub mod keys;
mod location;
mod owner;
mod probe;
mod restart;
mod run;
mod store;
mod transfer;
mod upload;
mod verified;

pub use attempt::{AttemptId, InvalidAttemptId};
pub use checkpoint::{CheckpointId, newest_checkpoint};
pub use client::Credentials;
pub use commit::{Commit, CommitOutcome};
pub use diff::{FieldChange, called, diff, item_name};
pub use digest::{Digest, Hasher, InvalidDigest};
pub use error::{Error, ErrorKind, Result};
pub use garbage::Sweep;
pub use location::overlap;
pub use owner::{Claim, StorageOwner};
pub use restart::{Restart, RestartFrom};
pub use run::{Run, RunCommit};
pub use store::{Meta, Patience, Store};
pub use verified::ObjectRef;
