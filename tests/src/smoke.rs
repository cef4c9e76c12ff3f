//! The smoke run: the manifests of `examples/smoke` in a folder of their own, run by the real
//! binaries.

use std::ops::{Deref, DerefMut};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use crate::chat::ChatServer;
use crate::processes::is_root;

/// The address that the example's manifests name.
const EXAMPLE_SERVER: &str = "http://127.0.0.1:18080/v1";

/// A prepared output folder.
#[derive(Debug)]
pub struct Smoke {
    dir: tempfile::TempDir,
    /// Passed to every command.
    pub clock_speed: u32,
}

/// The repository.
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// A binary under test.
///
/// # Panics
/// When it was not built.
pub fn binary(name: &str) -> PathBuf {
    let folder = std::env::var_os("LONGSTRAP_BIN_DIR").map_or_else(
        // target/PROFILE/deps/TEST
        || std::env::current_exe().unwrap().parent().unwrap().parent().unwrap().to_owned(),
        PathBuf::from,
    );
    let path = folder.join(name);
    assert!(path.is_file(), "{} is missing: cargo build -p longstrap -p longstrap-worker", path.display());
    path
}

impl Smoke {
    /// Copies the example with `server` as its endpoint.
    pub fn new(server: &ChatServer) -> Self {
        let smoke = Self { dir: tempfile::tempdir().unwrap(), clock_speed: 1 };
        let example = repository().join("examples/smoke");
        std::fs::create_dir_all(smoke.manifests()).unwrap();
        std::fs::create_dir_all(smoke.out()).unwrap();
        for name in ["synthesis.yaml", "extension.yaml"] {
            let text = std::fs::read_to_string(example.join(name)).unwrap();
            let text = text.replace(EXAMPLE_SERVER, &format!("http://{}/v1", server.address));
            std::fs::write(smoke.manifests().join(name), text).unwrap();
        }
        copy_folder(&example.join("model"), &smoke.out().join("model"));
        for (from, to) in [("corpus/corpus.jsonl", "corpus.jsonl"), ("short.jsonl", "short.jsonl")] {
            std::fs::copy(example.join(from), smoke.out().join(to)).unwrap();
        }
        smoke
    }

    /// Folder of the manifests.
    pub fn manifests(&self) -> PathBuf {
        self.dir.path().join("manifests")
    }

    /// Output folder.
    pub fn out(&self) -> PathBuf {
        self.dir.path().join("out")
    }

    /// Replaces a piece of a manifest, which must be there once.
    ///
    /// # Panics
    /// When it is not.
    pub fn edit(&self, manifest: &str, from: &str, to: &str) {
        let path = self.manifests().join(manifest);
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text.matches(from).count(), 1, "{from:?} in {manifest}");
        std::fs::write(path, text.replace(from, to)).unwrap();
    }

    /// `longstrap local run` with further arguments.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let program = binary("longstrap");
        // Root may read and write everything; in a test permissions hold for everybody.
        let root = is_root();
        let mut command = Command::new(if root { "setpriv".as_ref() } else { program.as_os_str() });
        if root {
            command.args(["--bounding-set", "-dac_override,-dac_read_search"]).arg(&program);
        }
        command
            .args(["local", "run", "--clock-speed", &self.clock_speed.to_string(), "-f"])
            .arg(self.manifests())
            .arg("--out")
            .arg(self.out())
            .args(arguments)
            .env("LONGSTRAP_WORKER", binary("longstrap-worker"))
            .stdin(Stdio::null());
        command
    }

    /// Runs to the end: exit code and everything that was printed.
    pub fn run(&self, arguments: &[&str]) -> (i32, String) {
        let Output { status, stdout, stderr } = self.command(arguments).output().unwrap();
        let text = String::from_utf8_lossy(&stderr).into_owned() + &String::from_utf8_lossy(&stdout);
        (status.code().unwrap_or(-1), text)
    }

    /// Runs to the end, which must be good; what was printed.
    ///
    /// # Panics
    /// When the run does not complete.
    pub fn complete(&self) -> String {
        let (code, text) = self.run(&[]);
        assert_eq!(code, 0, "{text}");
        text
    }

    /// Starts a run; its output goes to a file beside the folder, appended.
    pub fn spawn(&self) -> Running {
        let log =
            std::fs::File::options().create(true).append(true).open(self.dir.path().join("log")).unwrap();
        Running(self.command(&[]).stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap())
    }

    /// What spawned runs printed so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }
}

/// A started run; it does not outlive a test that fails.
#[derive(Debug)]
pub struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended, and nothing can be done about an error here.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Deref for Running {
    type Target = Child;

    fn deref(&self) -> &Child {
        &self.0
    }
}

impl DerefMut for Running {
    fn deref_mut(&mut self) -> &mut Child {
        &mut self.0
    }
}

fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
    }
}
