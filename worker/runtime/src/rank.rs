//! What a rank process knows and how it speaks to its agent.
//!
//! The agent starts `longstrap-worker rank` with these variables; two of them are numbers of
//! inherited file descriptors: the socket to the agent, and a listener on this rank's address
//! in `peers`, open before any rank starts, so that a connection is never refused.

use std::io::Write;
use std::net::TcpListener;
use std::os::fd::FromRawFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};

use longstrap_proto::v1alpha1::rank_report::Report;
use longstrap_proto::v1alpha1::{Committed, Exit, ProgressReport, RankReport};
use longstrap_storage::CheckpointId;
use prost::Message;

use crate::env::require;
use crate::error::{StepError, StepResult};

/// Number of this rank, from 0.
pub const RANK: &str = "LONGSTRAP_RANK";
/// How many ranks there are.
pub const WORLD: &str = "LONGSTRAP_WORLD";
/// Gang generation.
pub const GENERATION: &str = "LONGSTRAP_GENERATION";
/// host:port of every rank, by rank, comma-separated.
pub const PEERS: &str = "LONGSTRAP_PEERS";
/// What ranks show each other when they connect.
pub const TOKEN: &str = "LONGSTRAP_TOKEN";
/// Key of the checkpoint to go on from, or empty.
pub const RESUME: &str = "LONGSTRAP_RESUME";
/// File descriptor of the socket to the agent.
pub const AGENT_FD: &str = "LONGSTRAP_AGENT_FD";
/// File descriptor of the listener.
pub const LISTEN_FD: &str = "LONGSTRAP_LISTEN_FD";

/// A rank's place in its gang.
#[derive(Debug)]
pub struct RankEnv {
    /// Number of this rank.
    pub rank: u32,
    /// How many ranks there are.
    pub world: u32,
    /// Gang generation.
    pub generation: u64,
    /// host:port of every rank, by rank.
    pub peers: Vec<String>,
    /// What ranks show each other when they connect.
    pub token: String,
    /// Checkpoint to go on from.
    pub resume: Option<CheckpointId>,
    /// Listens on this rank's address.
    pub listener: TcpListener,
}

impl RankEnv {
    /// Reads the variables and takes over the descriptors: call it once, in a rank process.
    ///
    /// # Errors
    /// Names the variable that is missing or wrong.
    pub fn from_env() -> StepResult<(Self, AgentLink)> {
        let peers: String = require(PEERS)?;
        let resume = crate::env::get(RESUME).map(|key| key.parse()).transpose();
        let resume = resume.map_err(|why: String| StepError::Failed(anyhow::anyhow!("{RESUME}: {why}")))?;
        let (listen, agent) = (require(LISTEN_FD)?, require(AGENT_FD)?);
        // SAFETY: the agent made both descriptors for this process alone and tells their
        // numbers only here; nothing else in this process opened or owns them.
        let (listener, link) = unsafe { (TcpListener::from_raw_fd(listen), UnixStream::from_raw_fd(agent)) };
        let environment = Self {
            rank: require(RANK)?,
            world: require(WORLD)?,
            generation: require(GENERATION)?,
            peers: peers.split(',').map(str::to_owned).collect(),
            token: require(TOKEN)?,
            resume,
            listener,
        };
        if environment.peers.len() != environment.world as usize || environment.rank >= environment.world {
            return Err(StepError::Failed(anyhow::anyhow!(
                "{PEERS} names {} ranks, {WORLD} is {}, {RANK} is {}",
                environment.peers.len(),
                environment.world,
                environment.rank
            )));
        }
        Ok((environment, AgentLink::new(link)))
    }
}

/// The rank's end of the socket to its agent; clones share it. An agent that is gone is no
/// error here: the rank dies with it.
#[derive(Clone, Debug)]
pub struct AgentLink {
    socket: Arc<Mutex<UnixStream>>,
}

impl AgentLink {
    /// Speaks over `socket`.
    pub fn new(socket: UnixStream) -> Self {
        Self { socket: Arc::new(Mutex::new(socket)) }
    }

    /// Tells how far the rank is; also its sign of life.
    pub fn report(&self, report: &ProgressReport) {
        self.send(Report::Progress(report.clone()));
    }

    /// Tells that the checkpoint `key` of `step` is committed.
    pub fn committed(&self, step: u64, key: &str) {
        self.send(Report::Committed(Committed { step, key: key.to_owned() }));
    }

    /// Tells why the rank is about to exit.
    pub fn ended(&self, error: &StepError) {
        let reason = error.reason().map(|reason| reason.as_str().to_owned()).unwrap_or_default();
        let code = error.exit_code().code();
        self.send(Report::Ended(Exit { code, reason, message: error.to_string() }));
    }

    fn send(&self, report: Report) {
        let bytes = RankReport { report: Some(report) }.encode_length_delimited_to_vec();
        let mut socket = self.socket.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Err(error) = socket.write_all(&bytes) {
            tracing::debug!(%error, "the agent does not listen");
        }
    }
}
