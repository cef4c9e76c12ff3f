//! Child processes that die with the test binary.

use std::{
    fs::File,
    os::unix::process::CommandExt,
    path::Path,
    process::{Child, Command, Stdio},
    sync::{OnceLock, mpsc},
};

use nix::{
    sys::signal::{self, Signal},
    unistd::Pid,
};

type Order = (Command, mpsc::Sender<std::io::Result<Child>>);

/// A child's parent-death signal comes when the THREAD that started it ends: all are started by one
/// that lives as long as the process.
fn spawner() -> &'static mpsc::Sender<Order> {
    static SPAWNER: OnceLock<mpsc::Sender<Order>> = OnceLock::new();
    SPAWNER.get_or_init(|| {
        let (orders, next) = mpsc::channel::<Order>();
        std::thread::spawn(move || {
            for (mut command, answer) in next {
                answer.send(command.spawn()).ok();
            }
        });
        orders
    })
}

/// A running child; killed when dropped.
pub struct Process {
    child: Child,
    /// For messages.
    pub name: String,
}

impl Process {
    /// Starts a program whose output goes to a file.
    pub fn start(program: &Path, args: &[String], env: &[(&str, String)], log: &Path) -> Self {
        let file = File::create(log).unwrap();
        let mut command = Command::new(program);
        command.args(args).envs(env.iter().cloned()).stdin(Stdio::null());
        command.stdout(file.try_clone().unwrap()).stderr(file);
        // SAFETY: prctl is async-signal-safe, and nothing else happens between fork and exec.
        unsafe {
            command.pre_exec(|| Ok(nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?));
        }
        let (answer, answered) = mpsc::channel();
        spawner().send((command, answer)).unwrap();
        let child = answered.recv().unwrap().unwrap_or_else(|e| panic!("{}: {e}", program.display()));
        Self { child, name: program.file_name().unwrap().to_string_lossy().into_owned() }
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        signal::kill(Pid::from_raw(self.child.id().cast_signed()), signal).unwrap();
    }

    /// Whether it has ended, and how.
    pub fn ended(&mut self) -> Option<std::process::ExitStatus> {
        self.child.try_wait().unwrap()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
