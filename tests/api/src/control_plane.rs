//! etcd, kube-apiserver and kube-controller-manager on free ports, with the generated CRDs.
//!
//! Invariant: of the controllers only those run that an operator's contract needs (job,
//! garbage-collector, namespace, serviceaccount): PodGC would do the operator's work on lost nodes.

use std::{
    net::TcpListener,
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
use tempfile::TempDir;

use crate::Process;

const TOKEN: &str = "of-the-tests";

/// A running control plane.
pub struct ControlPlane {
    dir: TempDir,
    processes: Vec<Process>,
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// A file or folder that an environment variable names.
pub(crate) fn from_env(name: &str) -> PathBuf {
    std::env::var_os(name).unwrap_or_else(|| panic!("{name} is not set: run `make test-api`")).into()
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

    /// A kubeconfig of an administrator.
    pub fn kubeconfig(&self) -> PathBuf {
        self.dir.path().join("kubeconfig")
    }

    /// A client; one for each runtime.
    pub async fn client(&self) -> Client {
        let kubeconfig = Kubeconfig::read_from(self.kubeconfig()).unwrap();
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
        std::fs::write(at("tokens.csv"), format!("{TOKEN},tests,tests,system:masters\n")).unwrap();
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
                "--service-cluster-ip-range=10.0.0.0/16".to_owned(),
                "--service-account-issuer=https://tests".to_owned(),
                format!("--service-account-key-file={key}"),
                format!("--service-account-signing-key-file={key}"),
                "--enable-admission-plugins=OwnerReferencesPermissionEnforcement".to_owned(),
            ],
        );
        let kubeconfig = format!(
            "{{apiVersion: v1, kind: Config, current-context: a, \
             contexts: [{{name: a, context: {{cluster: a, user: a}}}}], \
             clusters: [{{name: a, cluster: {{server: \"https://127.0.0.1:{secure}\", certificate-authority: \"{}\"}}}}], \
             users: [{{name: a, user: {{token: {TOKEN}}}}}]}}",
            at("certs/apiserver.crt")
        );
        std::fs::write(at("kubeconfig"), kubeconfig).unwrap();
        let mut plane = Self { dir, processes: vec![etcd, apiserver] };
        plane.wait_and_install();
        plane.processes.push(Process::start(
            &bin.join("kube-controller-manager"),
            &[
                format!("--kubeconfig={}", plane.kubeconfig().display()),
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
            let name = crd["metadata"]["name"].as_str().unwrap().to_owned();
            loop {
                self.check();
                let api = Api::<CustomResourceDefinition>::all(self.client().await);
                let applied = api.patch(&name, &PatchParams::apply("tests"), &Patch::Apply(&crd)).await;
                let established = |crd: &CustomResourceDefinition| {
                    let conditions = crd.status.as_ref().and_then(|s| s.conditions.as_ref());
                    conditions.into_iter().flatten().any(|c| c.type_ == "Established" && c.status == "True")
                };
                match applied {
                    Ok(crd) if established(&crd) => break,
                    other => assert!(Instant::now() < give_up, "{name}: {other:?}"),
                }
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
    }
}
