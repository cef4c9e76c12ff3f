//! A world that plans are tried in: it applies them as an executor would, and plays Job controller
//! and kubelet just far enough.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::{
    batch::v1::{Job, JobCondition},
    core::v1::Pod,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use longstrap_crds::{
    CommonStatus, Object, Phase, SynthesisJob, TaskFile, TerminationMessage, parse, task::Ports,
};
use serde_json::{Value, json};

use super::*;

pub(super) const UID: &str = "5f0f3b4c-0a59-4c0e-9d0e-0d2a3f0f7f11";

pub(super) fn synthesis_job() -> Value {
    json!({
        "apiVersion": "longstrap.io/v1alpha1",
        "kind": "SynthesisJob",
        "metadata": {"name": "docs", "namespace": "ml", "uid": UID, "generation": 1},
        "spec": {
            "storage": {"uri": "s3://b/docs"},
            "tokenizer": {"uri": "s3://b/model"},
            "corpus": [{"name": "web", "uri": "s3://b/corpus", "format": "Parquet"}],
            "generator": {"endpoints": [{"name": "a", "url": "http://vllm/v1", "model": "m"}], "contextLength": "8Ki"},
            "samples": {"longInput": {"count": 2, "lengths": [{"name": "x", "tokens": 16384}]}},
            "workers": 2,
            "backoffLimit": 2,
        },
    })
}

pub(super) fn extension_run() -> Value {
    json!({
        "apiVersion": "longstrap.io/v1alpha1",
        "kind": "ContextExtensionRun",
        "metadata": {"name": "run", "namespace": "ml", "uid": UID, "generation": 1},
        "spec": {
            "storage": {"uri": "s3://b/run"},
            "model": {"uri": "s3://b/model"},
            "data": [{"name": "long", "synthesisJobRef": {"name": "docs"}}, {"name": "short", "uri": "s3://b/short"}],
            "stages": [{"name": "a", "contextLength": 512, "steps": 2}, {"name": "b", "contextLength": 1024, "steps": 2}],
            "parallelism": {"nodes": 2, "ranksPerNode": 4},
            "backoffLimit": 2,
        },
    })
}

/// A SynthesisJob in a phase. It has a dataset whatever the phase: the phase decides.
pub(super) fn other_job(phase: Option<Phase>) -> SynthesisJob {
    let Ok(Object::SynthesisJob(mut job)) = parse(&synthesis_job()) else { panic!() };
    let mut status = SynthesisJobStatus::default();
    status.common.phase = phase;
    status.dataset = Some(dataset());
    job.status = Some(status);
    *job
}

pub(super) fn dataset() -> longstrap_crds::DatasetRef {
    longstrap_crds::DatasetRef {
        uri: "s3://b/docs/dataset".into(),
        digest: "sha256:d".into(),
        rows: 2,
        tokens: 9,
    }
}

thread_local! {
    /// Reasons of every event and condition that a world of this thread has seen.
    pub(super) static REACHED: RefCell<BTreeSet<Reason>> = const { RefCell::new(BTreeSet::new()) };
}

pub(super) struct Sim {
    pub(super) world: World,
    /// Every event so far.
    pub(super) events: Vec<Event>,
    /// Names of Jobs that were ever created.
    pub(super) created: BTreeSet<String>,
    /// Task files by the name of their Job.
    pub(super) tasks: BTreeMap<String, TaskFile>,
    pub(super) requeue: Option<Timestamp>,
    pub(super) delete_object: bool,
    uids: u32,
}

impl Sim {
    pub(super) fn new(doc: &Value) -> Self {
        let object = parse(doc).unwrap_or_else(|e| panic!("{e:?}"));
        let world = World {
            object,
            jobs: Vec::new(),
            pods: Vec::new(),
            synthesis: BTreeMap::new(),
            obstacles: Vec::new(),
            now: "2026-01-01T00:00:00Z".parse().unwrap(),
            config: OperatorConfig {
                cluster: "c".into(),
                image: "longstrap@sha256:1".into(),
                outage_timeout_seconds: 600,
                rendezvous_host: None,
                ports: Ports::default(),
                one_machine: false,
                threads_per_rank: 1,
            },
        };
        Self {
            world,
            events: Vec::new(),
            created: BTreeSet::new(),
            tasks: BTreeMap::new(),
            requeue: None,
            delete_object: false,
            uids: 0,
        }
    }

    /// Changes the spec as an edit would.
    pub(super) fn edit(&mut self, change: impl FnOnce(&mut Object)) {
        change(&mut self.world.object);
        let metadata = self.world.object.metadata_mut();
        metadata.generation = metadata.generation.map(|g| g + 1);
    }

    pub(super) fn advance(&mut self, seconds: i64) {
        self.world.now = self.world.now.checked_add(SignedDuration::from_secs(seconds)).unwrap();
    }

    pub(super) fn status(&self) -> CommonStatus {
        self.world.object.status()
    }

    /// Plans and applies until nothing changes.
    pub(super) fn settle(&mut self) {
        for _ in 0..8 {
            let plan = plan(&self.world);
            let (again, before) = (super::plan(&self.world), self.world.object.clone());
            assert_eq!(plan, again, "not a function of the world");
            let idle = plan.create.is_empty() && plan.delete.is_empty() && plan.lost.is_empty();
            self.apply(plan);
            if idle && self.world.object == before {
                return;
            }
        }
        panic!("the plan does not settle: {}", self.shown());
    }

    /// Writes a plan; `settle` does it again and again.
    pub(super) fn apply(&mut self, plan: Plan) {
        match (&mut self.world.object, plan.status) {
            (Object::SynthesisJob(o), ObjectStatus::SynthesisJob(s)) => o.status = Some(*s),
            (Object::ContextExtensionRun(o), ObjectStatus::ContextExtensionRun(s)) => o.status = Some(*s),
            _ => panic!("the status of another kind"),
        }
        for lost in plan.lost {
            self.world.pods.retain(|p| p.metadata.uid != lost.uid);
        }
        for child in plan.delete {
            self.delete_job(&child.name);
        }
        for child in plan.create {
            match child {
                Child::ConfigMap(map) => {
                    let task = &map.data.as_ref().unwrap()["task.json"];
                    self.tasks.insert(map.metadata.name.clone().unwrap(), TaskFile::from_json(task).unwrap());
                }
                Child::Service(_) => {}
                Child::Job(new) => {
                    let mut job = new.job;
                    job.metadata.uid = Some(self.uid());
                    job.metadata.creation_timestamp = Some(Time(self.world.now));
                    self.created.insert(job.metadata.name.clone().unwrap());
                    self.world.jobs.push(job);
                }
            }
        }
        let of_conditions = self.status().conditions.into_iter().filter_map(|c| c.reason.parse().ok());
        let reasons = of_conditions.chain(plan.events.iter().map(|e| e.reason));
        REACHED.with(|reached| reached.borrow_mut().extend(reasons));
        self.events.extend(plan.events);
        self.requeue = plan.requeue;
        self.delete_object = plan.delete_object;
    }

    fn uid(&mut self) -> String {
        self.uids += 1;
        format!("uid-{}", self.uids)
    }

    pub(super) fn delete_job(&mut self, name: &str) {
        self.world.jobs.retain(|j| j.metadata.name.as_deref() != Some(name));
        self.world
            .pods
            .retain(|p| p.metadata.labels.as_ref().unwrap()["batch.kubernetes.io/job-name"] != name);
    }

    /// The Job that is not finished.
    pub(super) fn active_job(&mut self) -> Option<&mut Job> {
        self.world.jobs.iter_mut().find(|j| !super::observe::succeeded(j) && !super::observe::failed(j))
    }

    /// Starts pods of the active Job until every index has one that runs or has succeeded.
    pub(super) fn start(&mut self) {
        let Some(job) = self.active_job().cloned() else { return };
        let name = job.metadata.name.clone().unwrap();
        for index in 0..job.spec.as_ref().unwrap().completions.unwrap() {
            let index = index.to_string();
            let of_index: Vec<&Pod> = self
                .world
                .pods
                .iter()
                .filter(|p| p.metadata.labels.as_ref().unwrap()["batch.kubernetes.io/job-name"] == name)
                .filter(|p| {
                    p.metadata.annotations.as_ref().unwrap()["batch.kubernetes.io/job-completion-index"]
                        == index
                })
                .collect();
            let phase = |p: &Pod| p.status.as_ref().unwrap().phase.clone().unwrap();
            if of_index.iter().any(|p| phase(p) != "Failed") {
                continue;
            }
            let failures = of_index.len().to_string();
            let uid = self.uid();
            let pod = json!({
                "metadata": {
                    "name": format!("pod-{uid}"),
                    "uid": uid,
                    "creationTimestamp": self.world.now.to_string(),
                    "labels": {"batch.kubernetes.io/job-name": name},
                    "annotations": {
                        "batch.kubernetes.io/job-completion-index": index,
                        "batch.kubernetes.io/job-index-failure-count": failures,
                    },
                },
                "spec": {"nodeName": format!("node-{index}"), "containers": []},
                "status": {
                    "phase": "Running",
                    "startTime": self.world.now.to_string(),
                    "containerStatuses": [{"name": "worker", "image": "", "imageID": "", "ready": true, "restartCount": 0,
                        "state": {"running": {}}}],
                },
            });
            self.world.pods.push(serde_json::from_value(pod).unwrap());
        }
    }

    /// Ends the worker in the running pod of an index of the active Job; another container runs on.
    pub(super) fn end_worker(&mut self, index: usize, code: i32, message: &TerminationMessage) {
        let now = self.world.now;
        let Some(name) = self.active_job().and_then(|job| job.metadata.name.clone()) else { return };
        let Some(pod) = self.running_pod(&name, index) else { return };
        let state = json!({"terminated": {"exitCode": code, "finishedAt": now.to_string(), "message": message.to_json()}});
        let worker = &mut pod.status.as_mut().unwrap().container_statuses.as_mut().unwrap()[0];
        worker.state = serde_json::from_value(state).unwrap();
    }

    fn running_pod(&mut self, job: &str, index: usize) -> Option<&mut Pod> {
        let index = index.to_string();
        self.world.pods.iter_mut().find(|p| {
            p.metadata.labels.as_ref().unwrap()["batch.kubernetes.io/job-name"] == job
                && p.metadata.annotations.as_ref().unwrap()["batch.kubernetes.io/job-completion-index"]
                    == index
                && p.status.as_ref().unwrap().phase.as_deref() == Some("Running")
        })
    }

    /// Ends the running pod of an index of the active Job.
    pub(super) fn end(&mut self, index: usize, code: i32, message: &TerminationMessage) {
        self.end_worker(index, code, message);
        let Some(job) = self.active_job() else { return };
        let name = job.metadata.name.clone().unwrap();
        let spec = job.spec.clone().unwrap();
        let Some(pod) = self.running_pod(&name, index) else { return };
        pod.status.as_mut().unwrap().phase = Some(if code == 0 { "Succeeded" } else { "Failed" }.into());
        let succeeded = self
            .world
            .pods
            .iter()
            .filter(|p| p.metadata.labels.as_ref().unwrap()["batch.kubernetes.io/job-name"] == name)
            .filter(|p| p.status.as_ref().unwrap().phase.as_deref() == Some("Succeeded"))
            .count();
        let wanted =
            spec.success_policy.map_or(spec.completions.unwrap(), |p| p.rules[0].succeeded_count.unwrap());
        if succeeded >= wanted as usize {
            self.condition("SuccessCriteriaMet");
        } else if code == 10 || code == 13 {
            self.condition("FailureTarget");
        }
    }

    /// The nodes of running pods stop answering: the pods are deleted, and stay.
    pub(super) fn lose(&mut self, which: impl Fn(&Pod) -> bool) {
        let now = Time(self.world.now);
        let runs = |p: &Pod| p.status.as_ref().unwrap().phase.as_deref() == Some("Running");
        for pod in self.world.pods.iter_mut().filter(|p| runs(p) && which(p)) {
            pod.metadata.deletion_timestamp.get_or_insert(now.clone());
        }
    }

    fn condition(&mut self, type_: &str) {
        let now = Time(self.world.now);
        if let Some(job) = self.active_job() {
            job.status.get_or_insert_default().conditions.get_or_insert_default().push(JobCondition {
                type_: type_.into(),
                status: "True".into(),
                last_transition_time: Some(now),
                ..JobCondition::default()
            });
        }
    }

    /// The step succeeds: every pod ends with 0 and says what it made.
    pub(super) fn succeed(&mut self) {
        self.start();
        let message = TerminationMessage {
            committed: 1,
            complete: true,
            dataset: Some(dataset()),
            model: Some("s3://b/run/model".into()),
            data: vec![longstrap_crds::task::PinnedData {
                name: "short".into(),
                uri: "s3://b/short".into(),
                digest: Some("sha256:s".into()),
            }],
            ..TerminationMessage::default()
        };
        for index in 0..8 {
            self.end(index, 0, &message);
        }
    }

    /// Phase, step/attempt, Jobs (`*`: not finished), conditions with reasons.
    pub(super) fn shown(&self) -> String {
        let status = self.status();
        let jobs: Vec<String> = self
            .world
            .jobs
            .iter()
            .map(|j| {
                let parts: Vec<&str> = j.metadata.name.as_deref().unwrap().split('-').collect();
                let ended = super::observe::succeeded(j) || super::observe::failed(j);
                format!("{}{}", parts[3..].join("-"), if ended { "" } else { "*" })
            })
            .collect();
        let conditions: Vec<String> = status
            .conditions
            .iter()
            .map(|c| format!("{}{}:{}", if c.status == "True" { "" } else { "!" }, c.type_, c.reason))
            .collect();
        format!(
            "{} {}/{} [{}] {}",
            status.phase.map_or("-", Phase::as_str),
            status.step.unwrap_or_default(),
            status.attempt.unwrap_or(0),
            jobs.join(" "),
            conditions.join(" ")
        )
    }
}

/// Asks for a restart; a new value is a new request.
pub(super) fn restart_by(value: &str) -> impl Fn(&mut Sim) {
    move |sim| {
        let annotation = ("longstrap.io/restart-at".to_owned(), value.to_owned());
        sim.world.object.metadata_mut().annotations = Some([annotation].into());
    }
}

/// A message about committed work.
pub(super) fn committed(n: u64) -> TerminationMessage {
    TerminationMessage { committed: n, ..TerminationMessage::default() }
}

/// A message with a reason.
pub(super) fn because(reason: Reason, message: &str) -> TerminationMessage {
    TerminationMessage { reason: Some(reason), message: message.into(), ..TerminationMessage::default() }
}
