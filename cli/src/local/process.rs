//! A pod as a process of this machine: started, watched to its end, stopped as a kubelet would.
//!
//! Invariant: a pod process never outlives the executor (the kernel kills it, even after
//! `kill -9`), and everything that it started is gone when its end is reported.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::RawFd;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use tokio::process::{Child, Command};
use tokio::sync::{Notify, mpsc};

use super::pod::Exit;

/// A kubelet reads no more of a termination file.
const MESSAGE_LIMIT: usize = 4096;

/// What to start.
#[derive(Clone, Debug)]
pub(crate) struct Launch {
    /// UID of the pod.
    pub(crate) uid: String,
    /// Program and arguments.
    pub(crate) command: Vec<String>,
    /// Variables set besides those of the executor.
    pub(crate) env: BTreeMap<String, OsString>,
    /// Working directory: the pod's own folder.
    pub(crate) dir: PathBuf,
    /// Where standard output and error go.
    pub(crate) log: PathBuf,
    /// The file in which the process explains itself.
    pub(crate) termination: PathBuf,
    /// From SIGTERM to SIGKILL.
    pub(crate) grace: Duration,
    /// Descriptor of the folder's lock, inherited by the process.
    pub(crate) lock: RawFd,
}

/// The end of a pod process.
#[derive(Debug)]
pub(crate) struct Ended {
    /// UID of the pod.
    pub(crate) uid: String,
    /// How it ended.
    pub(crate) exit: Exit,
}

/// A started pod process; dropping the handle does not stop it.
#[derive(Debug)]
pub(crate) struct Handle {
    stop: Arc<Notify>,
    kill: Arc<Notify>,
}

impl Handle {
    /// SIGTERM now, SIGKILL after the grace period.
    pub(crate) fn stop(&self) {
        self.stop.notify_one();
    }

    /// SIGKILL now.
    pub(crate) fn kill(&self) {
        self.stop.notify_one();
        self.kill.notify_one();
    }
}

/// Starts a pod process; its end arrives at `ends`.
///
/// Must be called on the main thread: the parent-death signal is tied to the thread that forks.
pub(crate) fn start(launch: Launch, ends: mpsc::UnboundedSender<Ended>) -> io::Result<Handle> {
    let log = File::options().create(true).append(true).open(&launch.log)?;
    let program = launch.command.first().ok_or_else(|| io::Error::other("the container has no command"))?;
    let mut command = Command::new(program);
    command
        .args(&launch.command[1..])
        .envs(&launch.env)
        .current_dir(&launch.dir)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        // A terminal's Ctrl-C reaches the executor alone, which stops its pods in order.
        .process_group(0);
    let (parent, lock) = (Pid::this(), launch.lock);
    // SAFETY: between fork and exec only async-signal-safe system calls are made.
    unsafe {
        command.pre_exec(move || {
            nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
            if Pid::parent() != parent {
                return Err(io::Error::other("the executor is gone"));
            }
            if nix::libc::fcntl(lock, nix::libc::F_SETFD, 0) == -1 {
                return Err(io::Error::last_os_error());
            }
            Ok(())
        });
    }
    let child = command
        .spawn()
        .map_err(|error| io::Error::new(error.kind(), format!("cannot start {program}: {error}")))?;
    let pid = child.id().unwrap_or_default();
    let handle = Handle { stop: Arc::default(), kill: Arc::default() };
    tokio::spawn(watch(child, pid, launch, Arc::clone(&handle.stop), Arc::clone(&handle.kill), ends));
    Ok(handle)
}

async fn watch(
    mut child: Child,
    pid: u32,
    launch: Launch,
    stop: Arc<Notify>,
    kill_now: Arc<Notify>,
    ends: mpsc::UnboundedSender<Ended>,
) {
    let group = Pid::from_raw(i32::try_from(pid).unwrap_or(0));
    let ended = tokio::select! {
        status = child.wait() => Some(status),
        () = stop.notified() => {
            // It may have ended by itself in between; there is nothing to do about that.
            let _ = kill(group, Signal::SIGTERM);
            tokio::select! {
                status = child.wait() => Some(status),
                () = tokio::time::sleep(launch.grace) => None,
                () = kill_now.notified() => None,
            }
        }
    };
    let status = match ended {
        Some(status) => status,
        None => {
            let _ = child.start_kill();
            child.wait().await
        }
    };
    // In a container everything dies with its first process.
    let _ = killpg(group, Signal::SIGKILL);
    let exit = status.map_or_else(
        |_| Exit { code: 255, ..Exit::default() },
        |status| exit_of(status, &launch.termination),
    );
    let _ = ends.send(Ended { uid: launch.uid, exit });
}

fn exit_of(status: ExitStatus, termination: &Path) -> Exit {
    let signal = status.signal();
    let code = status.code().unwrap_or_else(|| 128 + signal.unwrap_or(0));
    let message = std::fs::read(termination).ok().filter(|bytes| !bytes.is_empty()).map(|mut bytes| {
        bytes.truncate(MESSAGE_LIMIT);
        String::from_utf8_lossy(&bytes).into_owned()
    });
    Exit { code, signal, message }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn run(script: &str, stop: bool) -> (Exit, String) {
        let dir = tempfile::tempdir().unwrap();
        let ready = dir.path().join("ready");
        let lock = File::create(dir.path().join("lock")).unwrap();
        let launch = Launch {
            uid: "u".into(),
            command: vec!["/bin/sh".into(), "-c".into(), script.into()],
            env: [("MESSAGE".to_owned(), dir.path().join("message").into_os_string())].into(),
            dir: dir.path().into(),
            log: dir.path().join("log"),
            termination: dir.path().join("message"),
            grace: Duration::from_millis(300),
            lock: std::os::fd::AsRawFd::as_raw_fd(&lock),
        };
        let fifo = nix::unistd::mkfifo(&ready, nix::sys::stat::Mode::S_IRWXU);
        fifo.unwrap();
        let (sender, mut ends) = mpsc::unbounded_channel();
        let handle = start(launch, sender).unwrap();
        if stop {
            // Opening for reading returns when the script opens the pipe for writing.
            tokio::task::spawn_blocking(move || std::fs::read(ready)).await.unwrap().unwrap();
            handle.stop();
        }
        let ended = ends.recv().await.unwrap();
        (ended.exit, std::fs::read_to_string(dir.path().join("log")).unwrap())
    }

    #[tokio::test]
    async fn codes_signals_messages_and_logs_are_reported() {
        let (exit, log) = run("echo out; echo err >&2; printf why > $MESSAGE; exit 10", false).await;
        assert_eq!(exit, Exit { code: 10, signal: None, message: Some("why".into()) });
        assert_eq!(log, "out\nerr\n");
        let (exit, _) = run("kill -9 $$", false).await;
        assert_eq!((exit.code, exit.signal), (137, Some(9)));
        let (exit, _) = run("head -c 5000 /dev/zero | tr '\\0' x > $MESSAGE", false).await;
        assert_eq!((exit.code, exit.message.unwrap().len()), (0, MESSAGE_LIMIT));
    }

    #[tokio::test]
    async fn a_pod_that_does_not_stop_is_killed_after_its_grace_period() {
        let (exit, _) = run("trap 'exit 11' TERM; : > ready; while :; do sleep 0.01; done", true).await;
        assert_eq!(exit.code, 11);
        let (exit, _) = run("trap '' TERM; : > ready; while :; do sleep 0.01; done", true).await;
        assert_eq!((exit.code, exit.signal), (137, Some(9)));
    }
}
