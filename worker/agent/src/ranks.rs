//! Rank processes: listeners, start, signals, what they tell, how they end.

use std::ffi::OsString;
use std::net::{IpAddr, TcpListener};
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use anyhow::Context as _;
use longstrap_proto::v1alpha1::{RankReport, rank_report::Report};
use longstrap_runtime::StepResult;
use longstrap_runtime::rank;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{Signal as UnixSignal, kill};
use nix::unistd::{Pid, getppid};
use prost::Message;
use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;
use tokio::process::{Child, Command};
use tokio::sync::mpsc::UnboundedSender;

use crate::message::Gang;
use crate::supervisor::{Ending, Signal};

/// What a rank process did.
#[derive(Debug)]
pub(crate) enum RankEvent {
    Told { rank: usize, report: Box<Report> },
    Exited { rank: usize, ending: Ending },
}

/// How to start a rank: program and arguments.
#[derive(Debug, Clone)]
pub struct RankCommand {
    /// The program.
    pub program: OsString,
    /// Its arguments.
    pub args: Vec<OsString>,
}

/// The processes of one generation in this pod.
#[derive(Default)]
pub(crate) struct Ranks {
    pids: Vec<Pid>,
}

/// One listener for each rank, on any free port.
pub(crate) fn listen(host: IpAddr, ranks: u32) -> StepResult<Vec<TcpListener>> {
    let bind = |_| TcpListener::bind((host, 0));
    let listeners: Result<_, _> = (0..ranks).map(bind).collect();
    Ok(listeners.with_context(|| format!("cannot listen on {host}"))?)
}

impl Ranks {
    /// Starts one process for each listener; `first` is the first one's number in the gang.
    /// Call it on a thread that lives as long as the agent: PDEATHSIG goes by the thread.
    pub(crate) fn start(
        command: &RankCommand,
        gang: &Gang,
        first: usize,
        listeners: Vec<TcpListener>,
        events: &UnboundedSender<RankEvent>,
    ) -> StepResult<Self> {
        let mut pids = Vec::new();
        for (rank, listener) in listeners.into_iter().enumerate() {
            let (ours, theirs) = StdUnixStream::pair().context("socket to a rank")?;
            ours.set_nonblocking(true).context("socket to a rank")?;
            let ours = UnixStream::from_std(ours).context("socket to a rank")?;
            let mut child = spawn(command, gang, first + rank, &listener, &theirs)
                .with_context(|| format!("cannot start rank {}: {:?}", first + rank, command.program))?;
            let pid = child.id().and_then(|id| i32::try_from(id).ok()).context("a rank without a pid")?;
            pids.push(Pid::from_raw(pid));
            let events = events.clone();
            tokio::spawn(async move { follow(rank, &mut child, ours, &events).await });
        }
        Ok(Self { pids })
    }

    pub(crate) fn signal(&self, rank: usize, signal: Signal) {
        let signal = match signal {
            Signal::Terminate => UnixSignal::SIGTERM,
            Signal::Kill => UnixSignal::SIGKILL,
        };
        if let Some(pid) = self.pids.get(rank)
            && let Err(error) = kill(*pid, signal)
        {
            tracing::debug!(%error, rank, "the rank is gone already");
        }
    }
}

fn spawn(
    command: &RankCommand,
    gang: &Gang,
    number: usize,
    listener: &TcpListener,
    link: &StdUnixStream,
) -> std::io::Result<Child> {
    let (listen_fd, link_fd) = (listener.as_raw_fd(), link.as_raw_fd());
    let agent = Pid::this();
    let mut process = Command::new(&command.program);
    process
        .args(&command.args)
        .env(rank::RANK, number.to_string())
        .env(rank::WORLD, gang.peers.len().to_string())
        .env(rank::GENERATION, gang.generation.to_string())
        .env(rank::PEERS, gang.peers.join(","))
        .env(rank::TOKEN, &gang.token)
        .env(rank::RESUME, gang.resume.as_deref().unwrap_or_default())
        .env(rank::LISTEN_FD, listen_fd.to_string())
        .env(rank::AGENT_FD, link_fd.to_string())
        .kill_on_drop(true);
    // SAFETY: between fork and exec only async-signal-safe calls are made (prctl, getppid,
    // fcntl), nothing is allocated, and both descriptors are open until after the spawn.
    unsafe {
        process.pre_exec(move || {
            set_pdeathsig(UnixSignal::SIGKILL)?;
            // The agent may have died before the line above.
            if getppid() != agent {
                return Err(std::io::ErrorKind::BrokenPipe.into());
            }
            inherit(listen_fd)?;
            inherit(link_fd)?;
            Ok(())
        });
    }
    process.spawn()
}

/// Lets the descriptor live on in the program that this child becomes.
fn inherit(fd: RawFd) -> nix::Result<()> {
    // SAFETY: the caller keeps the descriptor open.
    let fd = unsafe { BorrowedFd::borrow_raw(fd) };
    fcntl(fd, FcntlArg::F_SETFD(FdFlag::empty())).map(drop)
}

/// Passes on what the rank tells, then how it ended: all its words come first.
async fn follow(rank: usize, child: &mut Child, mut link: UnixStream, events: &UnboundedSender<RankEvent>) {
    let reading = async {
        loop {
            match read_report(&mut link).await {
                Ok(Some(report)) => {
                    // The agent's loop is gone only when the agent ends.
                    let _ = events.send(RankEvent::Told { rank, report: report.into() });
                }
                Ok(None) => break,
                Err(error) => {
                    tracing::warn!(rank, %error, "what a rank tells cannot be read");
                    break;
                }
            }
        }
    };
    let (status, ()) = tokio::join!(child.wait(), reading);
    let ending = status.map_or(Ending::Code(1), ending);
    let _ = events.send(RankEvent::Exited { rank, ending });
}

fn ending(status: ExitStatus) -> Ending {
    match (status.code(), status.signal()) {
        (Some(code), _) => Ending::Code(code),
        (None, Some(signal)) => Ending::Signal(signal),
        (None, None) => Ending::Code(1),
    }
}

/// The next report; `None` at the end, also inside a report (the rank was killed there).
async fn read_report(link: &mut UnixStream) -> std::io::Result<Option<Report>> {
    /// No rank says more at once.
    const LONGEST: u64 = 1 << 20;
    let mut length = 0_u64;
    for shift in (0..63).step_by(7) {
        let byte = match link.read_u8().await {
            Ok(byte) => byte,
            Err(error) if is_end(&error) => return Ok(None),
            Err(error) => return Err(error),
        };
        length |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            break;
        }
    }
    if length > LONGEST {
        return Err(std::io::Error::other(format!("a report of {length} bytes")));
    }
    let mut bytes = vec![0; length as usize];
    match link.read_exact(&mut bytes).await {
        Ok(_) => {}
        Err(error) if is_end(&error) => return Ok(None),
        Err(error) => return Err(error),
    }
    let report = RankReport::decode(bytes.as_slice()).map_err(std::io::Error::other)?;
    report.report.map(Some).ok_or_else(|| std::io::Error::other("a report of an unknown kind"))
}

fn is_end(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::UnexpectedEof | std::io::ErrorKind::ConnectionReset)
}
