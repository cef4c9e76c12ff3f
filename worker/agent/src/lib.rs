//! PID 1 of a training pod: starts the ranks, forms the gang, restarts it from the last checkpoint.
//!
//! **Gang.** All pods of a Job form a gang per generation n. The agent of index 0 coordinates
//! ([`coordinator`], pure): when every pod has joined it claims `gang/{n}.json` in storage by
//! Create, with the checkpoint to resume from (highest generation, then highest step), and hands
//! out n, the ranks' addresses and a token. When a rank dies, hangs, or a pod is lost, all ranks
//! of all pods are stopped and the gang forms again in place as a later generation. The n of
//! checkpoints fences zombies; losing the coordinator loses nothing, its successor claims the
//! next n. Failures without a newer checkpoint are counted; at `backoffLimit` all agents exit 13.
//!
//! **Pod.** Each agent drives its own ranks ([`supervisor`], pure: events in, actions out) and
//! says their state to the coordinator again and again (`Rendezvous.Sync`), which answers with
//! what to do. Both sides are idempotent, so a lost call costs one repetition.
//!
//! **Rank.** A child process `<this program> rank` that dies with its agent (PDEATHSIG). It gets
//! the variables of `longstrap_runtime::rank` and two descriptors: a listener on its address in
//! `LONGSTRAP_PEERS`, open before any rank starts, and a socket to the agent on which it writes
//! length-delimited `RankReport`s: progress (its sign of life), commits, and why it ends.
//! Exit codes as for steps: 0 all work is done and committed, 10 and 12 end the gang with the
//! rank's reason, 11 after SIGTERM when its state is saved, all else is a failure.
//!
//! **End.** When every rank has exited 0 the coordinator commits `steps/{step}-to-{stage}.json`; an agent
//! that finds it exits 0 without starting anything.
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod claim;
mod coordinator;
mod drive;
mod message;
mod ranks;
mod rendezvous;
mod supervisor;
mod wire;

pub use drive::{RankCommand, run, run_with};
