//! etcd, kube-apiserver and kube-controller-manager on free ports, with the generated CRDs.
//!
//! Invariant: of the controllers only those run that an operator's contract needs (job,
//! garbage-collector, namespace, serviceaccount): PodGC would do the operator's work on lost nodes.

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
    time::{Duration, Instant},
};

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::{
    Api, Client, Config,
    api::{Patch, PatchParams},
    config::{KubeConfigOptions, Kubeconfig},
};
use serde_json::{Value, json};
use tempfile::{NamedTempFile, TempDir};

use crate::{
    Process,
    http::free_port,
    roles::{self, OPERATOR},
};

/// Who asks the API server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum User {
    /// The tests.
    Admin,
    /// The operator, with the rights that it is installed with.
    Operator,
}

impl User {
    fn token(self) -> &'static str {
        match self {
            Self::Admin => "of-the-tests",
            Self::Operator => "of-the-operator",
        }
    }
}

/// A running control plane.
pub struct ControlPlane {
    dir: TempDir,
    server: String,
    audit_log: PathBuf,
    processes: Vec<Process>,
}

/// A file or folder that an environment variable names.
pub(crate) fn from_env(name: &str) -> PathBuf {
    std::env::var_os(name).unwrap_or_else(|| panic!("{name} is not set: run `make test-api`")).into()
}

fn ready() -> hyper::Request<Vec<u8>> {
    hyper::Request::get("/readyz").body(Vec::new()).unwrap()
}

impl ControlPlane {
    /// The one of this test binary.
    pub fn shared() -> &'static Self {
        static PLANE: OnceLock<ControlPlane> = OnceLock::new();
        PLANE.get_or_init(Self::start)
    }

    /// Where logs and credentials are.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// What the operators ask for: `LONGSTRAP_AUDIT_LOG`, or a file that goes with the control plane.
    pub fn audit_log(&self) -> &Path {
        &self.audit_log
    }

    /// The API server's address.
    pub fn server(&self) -> &str {
        &self.server
    }

    fn config(&self, user: User, server: &str) -> Value {
        let authority = self.dir.path().join("certs/apiserver.crt");
        json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "a",
            "contexts": [{"name": "a", "context": {"cluster": "a", "user": "a"}}],
            "clusters": [{"name": "a", "cluster": {"server": server, "certificate-authority": authority}}],
            "users": [{"name": "a", "user": {"token": user.token()}}],
        })
    }

    /// A kubeconfig of a user, for the API server or a proxy before it.
    pub fn kubeconfig(&self, user: User, server: &str) -> PathBuf {
        let port = server.rsplit(':').next().unwrap_or_default();
        let path = self.dir.path().join(format!("{user:?}-{port}.kubeconfig").to_lowercase());
        // Whole or not at all: others may read it now.
        let file = NamedTempFile::new_in(self.dir.path()).unwrap();
        std::fs::write(file.path(), self.config(user, server).to_string()).unwrap();
        file.persist(&path).unwrap();
        path
    }

    /// A client; one for each runtime.
    pub async fn client(&self, user: User) -> Client {
        let kubeconfig: Kubeconfig = serde_json::from_value(self.config(user, &self.server)).unwrap();
        let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
        Client::try_from(config).unwrap()
    }

    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let bin = from_env("LONGSTRAP_CONTROL_PLANE");
        let at = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
        let run = |name: &str, args: &[String]| {
            Process::start(&bin.join(name), args, &[], &dir.path().join(format!("{name}.log")))
        };
        let key = at("service-accounts.key");
        let made = Command::new("openssl").args(["genrsa", "-out", &key, "2048"]).output().unwrap();
        assert!(made.status.success(), "openssl: {}", String::from_utf8_lossy(&made.stderr));
        let (admin, operator) = (User::Admin.token(), User::Operator.token());
        let tokens = format!("{admin},tests,tests,system:masters\n{operator},{OPERATOR},operator,\n");
        std::fs::write(at("tokens.csv"), tokens).unwrap();
        std::fs::write(at("audit.yaml"), roles::audit_policy().to_string()).unwrap();
        let audit_log = dir.path().join("audit.log");
        let audit_log = std::env::var_os("LONGSTRAP_AUDIT_LOG").map_or(audit_log, PathBuf::from);
        let (client, peer, secure) = (free_port(), free_port(), free_port());
        let etcd = run(
            "etcd",
            &[
                format!("--data-dir={}", at("etcd")),
                format!("--listen-client-urls=http://127.0.0.1:{client}"),
                format!("--advertise-client-urls=http://127.0.0.1:{client}"),
                format!("--listen-peer-urls=http://127.0.0.1:{peer}"),
                "--unsafe-no-fsync".to_owned(),
                "--log-level=error".to_owned(),
            ],
        );
        let apiserver = run(
            "kube-apiserver",
            &[
                format!("--etcd-servers=http://127.0.0.1:{client}"),
                format!("--secure-port={secure}"),
                "--bind-address=127.0.0.1".to_owned(),
                "--advertise-address=127.0.0.1".to_owned(),
                // Nobody goes through the Service `kubernetes`, and a loopback address is no endpoint.
                "--endpoint-reconciler-type=none".to_owned(),
                format!("--cert-dir={}", at("certs")),
                format!("--token-auth-file={}", at("tokens.csv")),
                "--authorization-mode=RBAC".to_owned(),
                // Pod Security is what refuses privileged pods, namespace by namespace.
                "--allow-privileged=true".to_owned(),
                "--service-cluster-ip-range=10.0.0.0/16".to_owned(),
                "--service-account-issuer=https://tests".to_owned(),
                format!("--service-account-key-file={key}"),
                format!("--service-account-signing-key-file={key}"),
                "--enable-admission-plugins=OwnerReferencesPermissionEnforcement".to_owned(),
                format!("--audit-policy-file={}", at("audit.yaml")),
                format!("--audit-log-path={}", audit_log.display()),
                "--audit-log-maxsize=10000".to_owned(),
            ],
        );
        let server = format!("https://127.0.0.1:{secure}");
        let mut plane = Self { dir, server, audit_log, processes: vec![etcd, apiserver] };
        plane.wait_and_install();
        plane.processes.push(Process::start(
            &bin.join("kube-controller-manager"),
            &[
                format!("--kubeconfig={}", plane.kubeconfig(User::Admin, &plane.server).display()),
                "--controllers=job-controller,garbage-collector-controller,namespace-controller,serviceaccount-controller"
                    .to_owned(),
                "--leader-elect=false".to_owned(),
                "--secure-port=0".to_owned(),
                "--kube-api-qps=500".to_owned(),
                "--kube-api-burst=1000".to_owned(),
            ],
            &[],
            &plane.dir.path().join("kube-controller-manager.log"),
        ));
        plane
    }

    /// On a runtime and a thread of its own: the caller may be inside another.
    fn wait_and_install(&mut self) {
        std::thread::scope(|scope| {
            scope
                .spawn(|| {
                    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                    runtime.block_on(self.install());
                })
                .join()
                .unwrap();
        });
    }

    /// Fails as soon as a process has ended.
    fn check(&mut self) {
        for process in &mut self.processes {
            let log = self.dir.path().join(format!("{}.log", process.name));
            if let Some(status) = process.ended() {
                panic!("{} has ended ({status}):\n{}", process.name, std::fs::read_to_string(log).unwrap());
            }
        }
    }

    async fn install(&mut self) {
        let give_up = Instant::now() + Duration::from_secs(120);
        while !self.dir.path().join("certs/apiserver.crt").exists() {
            self.check();
            assert!(Instant::now() < give_up, "no certificate: see {}", self.dir.path().display());
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let crds = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../crds/generated");
        for file in ["synthesisjobs.yaml", "contextextensionruns.yaml"] {
            let text = std::fs::read_to_string(crds.join(file)).unwrap();
            let crd: serde_json::Value = serde_saphyr::from_str(&text).unwrap();
            while let Err(error) = apply_crd(&self.client(User::Admin).await, &crd).await {
                self.check();
                assert!(Instant::now() < give_up, "{file}: {error}");
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
        roles::install(&self.client(User::Admin).await).await;
        // The controller manager gives up after 10 s of a server that is not healthy yet.
        while let Err(error) = self.client(User::Admin).await.request_text(ready()).await {
            self.check();
            assert!(Instant::now() < give_up, "the API server is not ready: {error}");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
}

/// Applies a CRD.
///
/// # Errors
/// Until it is established.
pub async fn apply_crd(client: &Client, crd: &Value) -> Result<(), String> {
    let api = Api::<CustomResourceDefinition>::all(client.clone());
    let name = crd["metadata"]["name"].as_str().unwrap();
    let params = PatchParams::apply("tests").force();
    let applied = api.patch(name, &params, &Patch::Apply(crd)).await.map_err(|e| e.to_string())?;
    let conditions = applied.status.and_then(|s| s.conditions).unwrap_or_default();
    let established = conditions.iter().any(|c| c.type_ == "Established" && c.status == "True");
    if established { Ok(()) } else { Err(format!("{name} is not established")) }
}
