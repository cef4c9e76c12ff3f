//! Many objects as they are in a cluster that has been at work for long: most are finished, some are
//! suspended, some run. Made by the planner itself, so that an operator finds nothing to do.
//!
//! Invariant: planning any of them again changes nothing.

use std::collections::BTreeMap;

use futures::{StreamExt, stream};
use k8s_openapi::{
    api::{
        batch::v1::Job,
        core::v1::{ConfigMap, Namespace, Pod, Service},
    },
    jiff::Timestamp,
};
use kube::{
    Api, Resource, ResourceExt,
    api::{ListParams, PostParams},
    core::Request,
};
use longstrap_crds::{ContextExtensionRun, Object, SynthesisJob, parse};
use longstrap_operator::plan::{Child, ObjectStatus, OperatorConfig, Plan, World, plan};
use serde_json::{Value, json};

use crate::{Sandbox, WORKER_IMAGE, extension_run, synthesis_job};

/// Requests of the test at once.
pub const IN_FLIGHT: usize = 64;

/// How an object stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stands {
    Finished,
    Suspended,
    Running,
}

impl Stands {
    /// 70 %, 20 %, 10 %.
    fn of(i: usize) -> Self {
        match i % 10 {
            0..7 => Self::Finished,
            7 | 8 => Self::Suspended,
            _ => Self::Running,
        }
    }
}

/// A manifest with a storage of its own; every other one is a run.
pub fn manifest(name: &str, i: usize) -> Value {
    if i.is_multiple_of(2) {
        return synthesis_job(name);
    }
    let mut run = extension_run(name, "none");
    run["spec"]["data"].as_array_mut().unwrap().remove(0);
    run
}

/// What makes and plans objects of a namespace.
pub struct Maker<'a> {
    s: &'a Sandbox,
    config: OperatorConfig,
}

impl<'a> Maker<'a> {
    /// For the operators of the tests.
    pub async fn new(s: &'a Sandbox) -> Self {
        let system = Api::<Namespace>::all(s.client.clone()).get("kube-system").await.unwrap();
        let config = OperatorConfig {
            cluster: system.uid().unwrap(),
            image: WORKER_IMAGE.to_owned(),
            outage_timeout_seconds: 600,
            rendezvous_host: None,
            ports: Default::default(),
            one_machine: false,
            threads_per_rank: 1,
        };
        Self { s, config }
    }

    fn plan(&self, object: Object, jobs: Vec<Job>, pods: Vec<Pod>) -> Plan {
        let now = Timestamp::from_second(Timestamp::now().as_second()).unwrap();
        let (synthesis, obstacles) = (BTreeMap::new(), Vec::new());
        plan(&World { object, jobs, pods, synthesis, obstacles, now, config: self.config.clone() })
    }

    /// Creates an object.
    pub async fn create(&self, doc: &Value) -> Object {
        let mut doc = doc.clone();
        doc["metadata"]["namespace"] = json!(self.s.namespace);
        let params = PostParams::default();
        match parse(&doc).unwrap() {
            Object::SynthesisJob(o) => {
                let made = self.s.api().create(&params, &*o).await.unwrap();
                Object::SynthesisJob(Box::new(made))
            }
            Object::ContextExtensionRun(o) => {
                let made = self.s.api().create(&params, &*o).await.unwrap();
                Object::ContextExtensionRun(Box::new(made))
            }
        }
    }

    async fn write_status(&self, object: &Object, status: &ObjectStatus) -> Object {
        let (name, params) = (object.name(), PostParams::default());
        match (object, status) {
            (Object::SynthesisJob(o), ObjectStatus::SynthesisJob(status)) => {
                let new = SynthesisJob { status: Some((**status).clone()), ..(**o).clone() };
                let written = self.s.api().replace_status(name, &params, &new).await.unwrap();
                Object::SynthesisJob(Box::new(written))
            }
            (Object::ContextExtensionRun(o), ObjectStatus::ContextExtensionRun(status)) => {
                let new = ContextExtensionRun { status: Some((**status).clone()), ..(**o).clone() };
                let written = self.s.api().replace_status(name, &params, &new).await.unwrap();
                Object::ContextExtensionRun(Box::new(written))
            }
            _ => unreachable!("a plan has the status of its object's kind"),
        }
    }

    /// What an operator writes for a new object: status, ConfigMap, Service, Job; how many writes.
    pub async fn as_an_operator_would(&self, object: Object) -> usize {
        let plan = self.plan(object.clone(), Vec::new(), Vec::new());
        self.write_status(&object, &plan.status).await;
        let params = PostParams::default();
        for child in &plan.create {
            match child {
                Child::ConfigMap(o) => drop(self.s.api::<ConfigMap>().create(&params, o).await.unwrap()),
                Child::Service(o) => drop(self.s.api::<Service>().create(&params, o).await.unwrap()),
                Child::Job(o) => {
                    let body = serde_json::to_vec(&o.manifest).unwrap();
                    let url = Job::url_path(&(), Some(&self.s.namespace));
                    let request = Request::new(url).create(&params, body).unwrap();
                    self.s.client.request::<Value>(request).await.unwrap();
                }
            }
        }
        1 + plan.create.len()
    }

    /// One object of the old cluster; of one that runs the children, but no pods yet.
    async fn old(&self, i: usize) -> Option<Object> {
        let mut doc = manifest(&format!("old-{i}"), i);
        let stands = Stands::of(i);
        doc["spec"]["suspend"] = json!(stands == Stands::Suspended);
        let object = self.create(&doc).await;
        let (last, middle) = match object {
            Object::SynthesisJob(_) => ("finalize", "generate"),
            Object::ContextExtensionRun(_) => ("export", "train-0"),
        };
        let status = match stands {
            Stands::Finished => {
                json!({"phase": "Complete", "step": last, "attempt": 1, "completionTime": Timestamp::now()})
            }
            Stands::Suspended => json!({}),
            Stands::Running => json!({"phase": "Queued", "step": middle, "attempt": 1}),
        };
        let mut with_status = object.to_json().unwrap();
        with_status["status"] = status;
        let object = parse(&with_status).unwrap();
        if stands == Stands::Running {
            self.as_an_operator_would(object.clone()).await;
            return Some(object);
        }
        let status = self.plan(object.clone(), Vec::new(), Vec::new()).status;
        self.write_status(&object, &status).await;
        None
    }

    /// `count` objects that nothing has to be done about.
    pub async fn old_cluster(&self, count: usize) {
        let running: Vec<Object> = stream::iter(0..count)
            .map(|i| self.old(i))
            .buffer_unordered(IN_FLIGHT)
            .filter_map(std::future::ready)
            .collect()
            .await;
        let pods = self
            .s
            .until("pods of the Jobs", async || {
                let pods = self.s.pods().await;
                if pods.len() == 2 * running.len() { Ok(pods) } else { Err(pods.len()) }
            })
            .await;
        stream::iter(&pods).for_each_concurrent(IN_FLIGHT, |pod| self.s.start_pod(pod)).await;
        let (jobs, pods) =
            (self.s.jobs().await, self.s.api::<Pod>().list(&ListParams::default()).await.unwrap().items);
        let settle = async |object: &Object| {
            let of = |labels: &BTreeMap<String, String>| {
                labels.get(longstrap_crds::names::LABEL_OWNER).is_some_and(|uid| uid == object.uid())
            };
            let jobs: Vec<Job> = jobs.iter().filter(|j| of(j.labels())).cloned().collect();
            let pods: Vec<Pod> = pods.iter().filter(|p| of(p.labels())).cloned().collect();
            let object = self.fresh(object).await;
            let status = self.plan(object.clone(), jobs, pods).status;
            self.write_status(&object, &status).await;
        };
        stream::iter(&running).for_each_concurrent(IN_FLIGHT, settle).await;
    }

    async fn fresh(&self, object: &Object) -> Object {
        match object {
            Object::SynthesisJob(_) => {
                Object::SynthesisJob(Box::new(self.s.api().get(object.name()).await.unwrap()))
            }
            Object::ContextExtensionRun(_) => {
                Object::ContextExtensionRun(Box::new(self.s.api().get(object.name()).await.unwrap()))
            }
        }
    }
}
