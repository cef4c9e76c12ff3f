//! `longstrap` on a cluster: each command end to end, against what a real API server says.

use std::{
    path::{Path, PathBuf},
    process::Output,
    time::Duration,
};

use k8s_openapi::api::core::v1::{Event, Namespace, Pod};
use kube::Api;
use kube::api::{DeleteParams, ListParams, PostParams};
use longstrap_api_tests::{ControlPlane, End, RUN, SYNTH, Sandbox, User, extension_run, synthesis_job};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::process::Command;

/// The program, as a person in the sandbox's namespace calls it.
struct Cli<'s> {
    sandbox: &'s Sandbox,
    kubeconfig: PathBuf,
    /// Where it is called.
    folder: TempDir,
}

/// What a call came to.
#[derive(Debug)]
struct Said {
    code: i32,
    out: String,
    err: String,
}

impl From<Output> for Said {
    fn from(output: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Self { code: output.status.code().unwrap_or(-1), out: text(output.stdout), err: text(output.stderr) }
    }
}

impl Said {
    /// It said these words, in this order, and ended with this code.
    #[track_caller]
    fn with(self, code: i32, words: &[&str]) -> Self {
        assert_eq!(self.code, code, "{self:#?}");
        let all = format!("{}{}", self.out, self.err);
        let mut rest = all.as_str();
        for word in words {
            let Some((_, after)) = rest.split_once(word) else { panic!("{word:?} is missing in {self:#?}") };
            rest = after;
        }
        self
    }
}

fn bin(variable: &str, name: &str) -> PathBuf {
    Path::new(&std::env::var_os(variable).unwrap_or_else(|| panic!("{variable} is not set"))).join(name)
}

impl<'s> Cli<'s> {
    fn new(sandbox: &'s Sandbox) -> Self {
        let kubeconfig = ControlPlane::shared().kubeconfig(User::Admin, sandbox.server());
        Self { sandbox, kubeconfig, folder: tempfile::tempdir().unwrap() }
    }

    fn command(&self, program: &Path, words: &str) -> Command {
        let mut command = Command::new(program);
        command.args(words.split(' ')).current_dir(self.folder.path()).kill_on_drop(true);
        command.env("KUBECONFIG", &self.kubeconfig);
        command
    }

    /// `longstrap WORDS -n NAMESPACE`.
    async fn say(&self, words: &str) -> Said {
        let words = format!("{words} -n {}", self.sandbox.namespace);
        self.command(&bin("LONGSTRAP_BIN_DIR", "longstrap"), &words).output().await.unwrap().into()
    }

    /// As somebody whom the server knows by another name.
    async fn say_as(&self, user: &str, words: &str) -> Said {
        let mut config: Value = serde_json::from_slice(&std::fs::read(&self.kubeconfig).unwrap()).unwrap();
        config["users"][0]["user"]["as"] = json!(user);
        let file = self.folder.path().join("another.kubeconfig");
        std::fs::write(&file, config.to_string()).unwrap();
        self.say(&format!("{words} --kubeconfig {}", file.display())).await
    }

    async fn kubectl(&self, words: &str) -> Said {
        let words = format!("{words} -n {}", self.sandbox.namespace);
        self.command(&bin("LONGSTRAP_CONTROL_PLANE", "kubectl"), &words).output().await.unwrap().into()
    }
}

#[tokio::test]
async fn status_and_wait_from_creation_to_complete() {
    let s = Sandbox::new("cli-complete").await;
    let cli = Cli::new(&s);
    let ns = &s.namespace;
    cli.say("status").await.with(0, &["no SynthesisJob and no ContextExtensionRun in namespace", ns, "-A"]);
    s.create(&synthesis_job("docs")).await;
    cli.say("status docs")
        .await
        .with(0, &[&format!("SynthesisJob {ns}/docs: New"), "no operator has looked at it"]);
    let operator = s.operator("a");
    s.start_pods(1).await;
    s.until("a pod that runs", async || {
        let said = cli.say("status synth/docs").await;
        if said.out.contains("1 running") { Ok(()) } else { Err(said) }
    })
    .await;
    cli.say("status synth/docs -o wide").await.with(
        0,
        &[
            &format!("SynthesisJob {ns}/docs: Pending"),
            "storage  s3://b/docs",
            "prepare   Pending",
            "generate  -",
            "PodsScheduled",
            "r-docs-",
            "active  1 running",
            "JobCreated",
        ],
    );
    let waiting = tokio::spawn({
        let words = format!("wait docs -n {ns} --timeout 5m");
        let mut command = cli.command(&bin("LONGSTRAP_BIN_DIR", "longstrap"), &words);
        async move { Said::from(command.output().await.unwrap()) }
    });
    s.end_pods(&End::committed()).await;
    s.start_pods(2).await;
    s.phase(SYNTH, "docs", "Running").await;
    // Telemetry of a running step; no operator that would write it over.
    drop(operator);
    let progress = json!({"step": "generate", "percent": 41, "samples": 1, "of": 2, "tokensPerSecond": 8100, "remaining": "3h12m"});
    s.set_status(SYNTH, "docs", json!({"progress": progress})).await;
    cli.say("status")
        .await
        .with(0, &["OBJECT", "TOKENS/S", "SynthesisJob/docs  Running  generate  41 %      8,100     3h12m"]);
    cli.say("status docs").await.with(
        0,
        &[
            "prepare   done",
            "generate  Running  41 %, 1 of 2 samples, 8,100 tokens/s, 3h12m left",
            "2 running",
        ],
    );
    cli.kubectl("get synth").await.with(0, &["NAME", "PHASE", "STEP", "AGE", "docs", "Running", "generate"]);
    let _operator = s.operator("b");
    s.end_pods(&End::committed()).await;
    s.succeed(1).await;
    let said = waiting.await.unwrap();
    let made =
        format!("SynthesisJob {ns}/docs is Complete: dataset of 2 samples, 9 tokens: s3://b/docs/dataset");
    assert!(!said.err.is_empty(), "it tells what it waits for: {said:?}");
    said.with(0, &[&made]);
    cli.say("status docs").await.with(0, &[": Complete", "result", "s3://b/docs/dataset", "finalize  done"]);
    let object: Value = serde_json::from_str(&cli.say("status docs -o json").await.out).unwrap();
    assert_eq!((&object["kind"], &object["status"]["phase"]), (&json!(SYNTH), &json!("Complete")));
    let objects: Value = serde_json::from_str(&cli.say("status -o json").await.out).unwrap();
    assert_eq!(objects["items"][0]["metadata"]["name"], "docs");
    cli.say("status docs -o yaml").await.with(0, &["kind: SynthesisJob", "phase: Complete"]);
    for words in ["suspend docs", "resume docs", "restart docs"] {
        cli.say(words).await.with(1, &["is Complete: there is nothing to do"]);
    }
}

#[tokio::test]
async fn a_run_that_has_failed_is_made_again() {
    let s = Sandbox::new("cli-failed").await;
    let cli = Cli::new(&s);
    let _operator = s.operator("a");
    let mut doc = synthesis_job("docs");
    doc["metadata"]["labels"] = json!({"team": "a"});
    doc["metadata"]["annotations"] = json!({"longstrap.io/restart-at": "1"});
    s.create(&doc).await;
    cli.say("retry docs").await.with(1, &["has not ended", "longstrap restart"]);
    s.start_pods(1).await;
    s.end_pods(&End::with(13, json!({"message": "out of luck"}))).await;
    cli.say("wait docs").await.with(1, &["is Failed: BackoffLimitExceeded: out of luck", "longstrap retry"]);
    cli.say("suspend docs").await.with(1, &["has failed and stays so", "longstrap retry"]);
    cli.say("status docs").await.with(0, &["last failure", "out of luck"]);
    let old = s.objects(SYNTH).get("docs").await.unwrap();
    // Who may not create must not delete either.
    cli.say_as("eve", "retry docs").await.with(1, &["not allowed to get synthesisjobs.longstrap.io", "eve"]);
    cli.say("retry docs").await.with(0, &["has been made again and goes on from s3://b/docs"]);
    let new = s.objects(SYNTH).get("docs").await.unwrap();
    assert_ne!(new.metadata.uid, old.metadata.uid);
    assert_eq!(new.data["spec"], old.data["spec"]);
    assert_eq!(new.metadata.labels, old.metadata.labels);
    assert_eq!(new.metadata.annotations.unwrap_or_default().len(), 0);
    let left = std::fs::read_dir(cli.folder.path()).unwrap();
    let left: Vec<_> =
        left.map(|file| file.unwrap().file_name()).filter(|name| name != "another.kubeconfig").collect();
    assert!(left.is_empty(), "{left:?}");
    // It goes on: the garbage collector takes the old one's children, and prepare runs again.
    s.start_pods(1).await;
    cli.say("wait docs --timeout 1s").await.with(3, &["has not ended within 1 s"]);
}

#[tokio::test]
async fn blocked_suspended_resumed_restarted() {
    let s = Sandbox::new("cli-edits").await;
    let cli = Cli::new(&s);
    let _operator = s.operator("a");
    s.create(&synthesis_job("docs")).await;
    s.start_pods(1).await;
    s.end_pods(&End::with(10, json!({"reason": "InvalidTokenizer", "message": "no chat template"}))).await;
    cli.say("wait docs").await.with(
        2,
        &["is Blocked: InvalidTokenizer: no chat template", "goes on after an edit or `longstrap restart`"],
    );
    cli.say("restart docs").await.with(0, &["starts its next attempt"]);
    let object = s.objects(SYNTH).get("docs").await.unwrap();
    let at = object.metadata.annotations.unwrap()["longstrap.io/restart-at"].clone();
    // What the restart has not been answered to yet is not told as blocked.
    cli.say("wait docs --timeout 1s").await.with(3, &["has not ended"]);
    s.until("the restart", async || {
        let status = s.status(SYNTH, "docs").await;
        if status["recovery"]["restartedAt"] == at.as_str() { Ok(()) } else { Err(status) }
    })
    .await;
    s.start_pods(1).await;
    cli.say("suspend docs").await.with(0, &["stops"]);
    s.phase(SYNTH, "docs", "Suspended").await;
    cli.say("suspend docs").await.with(0, &["is suspended already"]);
    cli.say("status docs").await.with(0, &[": Suspended", "goes on with `longstrap resume`"]);
    assert_eq!(s.objects(SYNTH).get("docs").await.unwrap().data["spec"]["suspend"], true);
    cli.say("resume docs").await.with(0, &["goes on with its next attempt"]);
    s.phase(SYNTH, "docs", "Pending").await;
    assert_eq!(s.objects(SYNTH).get("docs").await.unwrap().data["spec"]["suspend"], false);
    cli.say("resume docs").await.with(0, &["is not suspended"]);
}

#[tokio::test]
async fn logs_fall_back_to_what_pods_have_left() {
    let s = Sandbox::new("cli-logs").await;
    let cli = Cli::new(&s);
    let _operator = s.operator("a");
    s.create(&synthesis_job("docs")).await;
    cli.say("logs docs --rank 1").await.with(1, &["a SynthesisJob has no ranks"]);
    let pods = s
        .until("a pod", async || {
            let pods = s.pods().await;
            if pods.len() == 1 { Ok(pods) } else { Err(pods.len()) }
        })
        .await;
    cli.say("logs docs")
        .await
        .with(0, &["pod r-docs-", "-prepare-1-0-", "has no log yet: it has not started"]);
    // A node that the server cannot reach: its words, and no message yet.
    s.bind(&pods[0], "gone").await;
    s.start_pods(1).await;
    let refused = ["the log of pod r-docs-", "-prepare-1-0-", "cannot be had", "\"gone\" not found"];
    cli.say("logs docs").await.with(0, &refused);
    s.end_pods(&End::with(1, json!({"message": "out of luck"}))).await;
    let message = "its last message: exit code 1: out of luck";
    let said = cli.say("logs docs --attempt 1 --step prepare --index 0").await.with(0, &[message]);
    assert!(said.err.contains("\"gone\" not found"), "{said:?}");
    cli.say("logs docs --attempt 7").await.with(1, &["has no pods of attempt 7"]);
    // The Event of the failure outlives the pod.
    s.until("the event", async || {
        let events = s.api::<Event>().list(&ListParams::default()).await.unwrap().items;
        let said = events.iter().any(|e| e.reason.as_deref() == Some("PodFailed"));
        if said { Ok(()) } else { Err(events.len()) }
    })
    .await;
    cli.say("suspend docs").await.with(0, &[]);
    s.phase(SYNTH, "docs", "Suspended").await;
    for pod in s.pods().await {
        let now = DeleteParams::default().grace_period(0);
        s.api::<Pod>().delete(pod.metadata.name.as_deref().unwrap(), &now).await.unwrap();
    }
    s.until("no pods", async || {
        let left = s.pods().await.len();
        if left == 0 { Ok(()) } else { Err(left) }
    })
    .await;
    let gone = ["PodFailed: pod r-docs-", "ended with code 1: out of luck"];
    cli.say("logs docs --attempt 1").await.with(0, &gone);
    cli.say("logs docs -f").await.with(0, &gone);
}

/// Exit code 10 brings the worker's own words; its Event outlives the pod too.
#[tokio::test]
async fn the_last_words_of_every_attempt_are_told() {
    let s = Sandbox::new("cli-words").await;
    let cli = Cli::new(&s);
    let _operator = s.operator("a");
    s.create(&synthesis_job("docs")).await;
    for (attempt, words) in [(1, "no chat template"), (2, "no vocabulary")] {
        s.attempt(SYNTH, "docs", attempt).await;
        s.start_pods(1).await;
        s.end_pods(&End::with(10, json!({"reason": "InvalidTokenizer", "message": words}))).await;
        cli.say("wait docs").await.with(2, &["is Blocked: InvalidTokenizer", words]);
        s.until("the event", async || {
            let events = s.api::<Event>().list(&ListParams::default()).await.unwrap().items;
            let said = events.iter().any(|e| e.message.as_deref().is_some_and(|m| m.contains(words)));
            if said { Ok(()) } else { Err(events.len()) }
        })
        .await;
        for pod in s.pods().await {
            let now = DeleteParams::default().grace_period(0);
            let _ = s.api::<Pod>().delete(pod.metadata.name.as_deref().unwrap(), &now).await;
        }
        s.until("no pods", async || {
            let left = s.pods().await.len();
            if left == 0 { Ok(()) } else { Err(left) }
        })
        .await;
        let told = ["InvalidTokenizer: pod r-docs-", words];
        cli.say(&format!("logs docs --attempt {attempt}")).await.with(0, &told);
        cli.say("restart docs").await.with(0, &["starts its next attempt"]);
    }
    s.attempt(SYNTH, "docs", 3).await;
    let said = cli.say("logs docs --attempt 1").await.with(0, &["no chat template"]);
    assert!(!said.out.contains("no vocabulary"), "{said:?}");
}

#[tokio::test]
async fn following_ends_with_the_run() {
    let s = Sandbox::new("cli-follow").await;
    let cli = Cli::new(&s);
    let _operator = s.operator("a");
    s.create(&synthesis_job("docs")).await;
    let words = format!("logs docs -f -n {}", s.namespace);
    let mut command = cli.command(&bin("LONGSTRAP_BIN_DIR", "longstrap"), &words);
    let following = tokio::spawn(async move { Said::from(command.output().await.unwrap()) });
    s.start_pods(1).await;
    s.end_pods(&End::with(13, json!({"message": "exhausted"}))).await;
    let said = tokio::time::timeout(Duration::from_secs(60), following).await.unwrap().unwrap();
    said.with(0, &["pod r-docs-", "is Failed: BackoffLimitExceeded: exhausted"]);
}

/// The storage of a run with one stage, and a file of somebody else.
fn storage(folder: &Path, owner: &Value) -> String {
    let put = |key: &str, value: &str| {
        let path = folder.join(key);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, value).unwrap();
    };
    put("owner/0.json", &owner.to_string());
    put("run.json", "{}");
    put("gang/1.json", "{}");
    // The digests of "{}" and of "12345".
    let run = "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a";
    let data = "sha256:5994471abb01112afcc18159f6cc74b4f511b99806da59b3caf5a9c173cacfc5";
    let weights = json!({"key": "stages/a/1-0-x/w", "digest": data, "bytes": 5});
    put("stages/a/1-0-x/w", "12345");
    put(
        "stages/a/stage.json",
        &json!({"attemptId": "1-0-x", "fingerprint": run, "files": [weights]}).to_string(),
    );
    put("mine.txt", "keep");
    format!("file://{}", folder.display())
}

#[tokio::test]
async fn clean_deletes_what_a_run_has_written_and_only_that() {
    let s = Sandbox::new("cli-clean").await;
    let cli = Cli::new(&s);
    let folder = cli.folder.path().join("run");
    let mut doc = extension_run("run", "docs");
    doc["spec"]["storage"]["uri"] = json!(format!("file://{}", folder.display()));
    s.create(&doc).await;
    let object = s.objects(RUN).get("run").await.unwrap();
    let uid = object.metadata.uid.unwrap();
    // Claimed by an operator that calls the cluster by another name: the UID is enough.
    let own = json!({"cluster": "c", "namespace": s.namespace, "name": "run", "uid": uid});
    let uri = storage(&folder, &own);
    cli.say("clean run")
        .await
        .with(1, &["is New and may be writing", "longstrap suspend ContextExtensionRun/run"]);
    s.set_status(RUN, "run", json!({"phase": "Complete"})).await;
    let whole = [
        "stages/a/1-0-x/w",
        "5",
        "data",
        "owner/0.json",
        "total: 5 objects",
        "stays",
        "mine.txt",
        "nothing was deleted",
    ];
    cli.say("clean run").await.with(0, &whole);
    cli.say(&format!("clean {uri}")).await.with(0, &whole);
    assert!(folder.join("stages/a/1-0-x/w").exists());
    cli.say("clean cer/run --yes").await.with(0, &["total: 5 objects", "deleted"]);
    let left: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|f| f.unwrap().file_name()).collect();
    assert_eq!(left, ["mine.txt"]);
    cli.say("clean run").await.with(1, &["is no run's storage"]);

    // An earlier object of that name on this cluster.
    let kube_system = Api::<Namespace>::all(s.client.clone()).get("kube-system").await.unwrap();
    let cluster = kube_system.metadata.uid.unwrap();
    let earlier = json!({"cluster": cluster, "namespace": s.namespace, "name": "run", "uid": "earlier"});
    storage(&folder, &earlier);
    cli.say("clean run --yes").await.with(0, &["total: 5 objects", "deleted"]);
}

#[tokio::test]
async fn clean_deletes_nothing_of_others_and_nothing_that_others_need() {
    let s = Sandbox::new("cli-clean-others").await;
    let cli = Cli::new(&s);
    let ns = &s.namespace;
    let folder = cli.folder.path().join("run");
    let mut doc = extension_run("run", "docs");
    doc["spec"]["storage"]["uri"] = json!(format!("file://{}", folder.display()));
    s.create(&doc).await;
    s.set_status(RUN, "run", json!({"phase": "Failed"})).await;
    let uid = s.objects(RUN).get("run").await.unwrap().metadata.uid.unwrap();
    let refused = async |words: &[&str]| {
        cli.say("clean run --yes").await.with(1, words);
        assert!(folder.join("stages/a/1-0-x/w").exists());
    };

    // Another object of this cluster, and one of the same name on another cluster.
    let kube_system = Api::<Namespace>::all(s.client.clone()).get("kube-system").await.unwrap();
    let cluster = kube_system.metadata.uid.unwrap();
    let owner =
        |cluster: &str, name: &str| json!({"cluster": cluster, "namespace": ns, "name": name, "uid": "u"});
    storage(&folder, &owner(&cluster, "another"));
    refused(&["belongs to", &format!("{ns}/another"), "nothing was deleted", "naming its URI"]).await;
    storage(&folder, &owner("prod", "run"));
    refused(&["belongs to", &format!("{ns}/run (UID u) of cluster prod"), &uid, "of cluster", &cluster])
        .await;

    // Who may not read the identity, nor look into other namespaces, is told so.
    cli.kubectl("create role cleaner --verb=get,list --resource=synthesisjobs.longstrap.io,contextextensionruns.longstrap.io,pods")
        .await
        .with(0, &[]);
    cli.kubectl("create rolebinding cleaner --role=cleaner --user=adam").await.with(0, &[]);
    storage(&folder, &owner(&cluster, "run"));
    cli.say_as("adam", "clean run --yes").await.with(1, &["belongs to", "cannot be read", "not allowed"]);
    let own = json!({"cluster": cluster, "namespace": ns, "name": "run", "uid": uid});
    storage(&folder, &own);
    let said = cli.say_as("adam", "clean run").await.with(0, &["total: 5 objects"]);
    assert!(said.err.contains(&format!("only those in namespace {ns} may be listed")), "{said:?}");

    // A pod that outlives the phase: nobody takes it away while its kubelet does not answer.
    let pod = json!({
        "metadata": {"name": "late", "labels": {"longstrap.io/owner-uid": uid}},
        "spec": {"containers": [{"name": "worker", "image": "i"}]},
    });
    let pods = s.api::<Pod>();
    pods.create(&PostParams::default(), &serde_json::from_value(pod).unwrap()).await.unwrap();
    refused(&["pod late is Pending and may be writing"]).await;
    pods.delete("late", &DeleteParams::default().grace_period(0)).await.unwrap();

    // Data that a run reads by name, and by URI from another namespace.
    let mut docs = synthesis_job("docs");
    docs["spec"]["storage"]["uri"] = json!(format!("s3://b/{ns}"));
    s.create(&docs).await;
    s.set_status(SYNTH, "docs", json!({"phase": "Complete"})).await;
    s.set_status(RUN, "run", json!({"phase": "Queued"})).await;
    cli.say("clean docs --yes").await.with(1, &[RUN, "run has not ended and reads the data of", "docs"]);
    s.set_status(RUN, "run", json!({"phase": "Failed"})).await;
    let there = Sandbox::new("cli-clean-there").await;
    let mut next = extension_run("next", "docs");
    next["spec"]["model"]["uri"] = json!(format!("file://{}/model", folder.display()));
    there.create(&next).await;
    refused(&[&format!("{}/next has not ended and reads", there.namespace), "(spec.model.uri)"]).await;
    there.set_status(RUN, "next", json!({"phase": "Complete"})).await;
    cli.say("clean run --yes").await.with(0, &["total: 5 objects", "deleted"]);
}

#[tokio::test]
async fn what_cannot_be_done_is_told_with_what_to_do() {
    let s = Sandbox::new("cli-errors").await;
    let there = Sandbox::new("cli-there").await;
    let cli = Cli::new(&s);
    there.create(&synthesis_job("cli-only-there")).await;
    cli.say("status cli-only-there").await.with(
        1,
        &[
            "there is no SynthesisJob or ContextExtensionRun cli-only-there in namespace",
            &s.namespace,
            &format!("there is one in namespace {0}: -n {0}", there.namespace),
        ],
    );
    cli.say("wait cer/nothing")
        .await
        .with(4, &["there is no ContextExtensionRun nothing", "longstrap status"]);
    s.create(&synthesis_job("twin")).await;
    s.create(&extension_run("twin", "docs")).await;
    cli.say("status twin").await.with(1, &["say synth/twin or cer/twin"]);
    cli.say("status cer/twin").await.with(0, &["ContextExtensionRun"]);
    cli.say("status pod/twin").await.with(64, &["is no kind of Longstrap"]);
    cli.say_as("eve", "suspend synth/twin").await.with(
        1,
        &[
            "not allowed to get synthesisjobs.longstrap.io in namespace",
            &s.namespace,
            "eve",
            "ask for a role",
        ],
    );
    cli.say("status --context nowhere").await.with(1, &["no cluster is configured", "nowhere", "--context"]);
    cli.say("status --kubeconfig missing").await.with(1, &["no cluster is configured", "missing"]);
    let away = cli.folder.path().join("away.kubeconfig");
    let config = std::fs::read_to_string(&cli.kubeconfig).unwrap().replace(s.server(), "https://127.0.0.1:1");
    std::fs::write(&away, config).unwrap();
    cli.say(&format!("status --kubeconfig {}", away.display()))
        .await
        .with(1, &["the API server https://127.0.0.1:1", "does not answer", "refused"]);
}
