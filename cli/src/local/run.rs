//! One object with its Jobs: the world that the planner sees, and the status that it writes.

use std::collections::BTreeMap;
use std::net::TcpListener;

use data_encoding::HEXLOWER;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use longstrap_crds::task::{Ports, RunSpec};
use longstrap_crds::{
    API_VERSION, CommonStatus, ContextExtensionRunStatus, Object, SynthesisJob, SynthesisJobStatus,
};
use longstrap_operator::{ObjectStatus, OperatorConfig, World};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::folder::{FolderError, OutFolder, Remembered};
use super::job::JobController;

/// What all objects of an executor share.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    /// Stands for the cluster: derived from the output folder's path, so that a lost `.local` is no
    /// foreign owner.
    pub(crate) cluster: String,
    /// Seconds that a pod waits for something outside.
    pub(crate) outage_timeout_seconds: u64,
}

impl Identity {
    /// Of the executor that works in `folder`.
    pub(crate) fn of(folder: &OutFolder, outage_timeout_seconds: u64) -> Self {
        let path = folder.root().as_os_str().as_encoded_bytes();
        let cluster = format!("local-{}", &HEXLOWER.encode(&Sha256::digest(path))[..16]);
        Self { cluster, outage_timeout_seconds }
    }
}

/// An object that the executor works on.
pub(crate) struct Run {
    /// With its status.
    pub(crate) object: Object,
    /// Its Jobs by name.
    pub(crate) jobs: BTreeMap<String, JobController>,
    remembered: Remembered,
    /// For the next Job that is created.
    rendezvous: u16,
}

impl Run {
    /// Takes up an object: under its old UID when the folder knows it.
    ///
    /// Every executor walks all steps again: a finished one ends at once from storage, so what was
    /// deleted since is noticed and what was edited is refused by `prepare`. Only the number of
    /// the attempt goes on, so that what the last executor left behind belongs to a dead attempt.
    pub(crate) fn take_up(
        mut object: Object,
        folder: &OutFolder,
        now: Timestamp,
        uid: impl FnOnce() -> String,
    ) -> Result<Self, RunError> {
        let spec = object.to_json()?.get("spec").cloned().unwrap_or_default();
        let remembered = match folder.recall(object.kind(), object.name())? {
            Some(old) => {
                let generation = old.generation + i64::from(old.spec != spec);
                Remembered { generation, spec, ..old }
            }
            None => Remembered { uid: uid(), generation: 1, spec, status: Value::Null, created: now },
        };
        let last = remembered.status.get("attempt").and_then(Value::as_u64);
        let attempt = last.and_then(|last| u32::try_from(last + 1).ok());
        let metadata = object.metadata_mut();
        metadata.uid = Some(remembered.uid.clone());
        metadata.generation = Some(remembered.generation);
        metadata.creation_timestamp = Some(Time(remembered.created));
        metadata.namespace.get_or_insert_with(|| "default".into());
        let common = CommonStatus { attempt, ..CommonStatus::default() };
        match &mut object {
            Object::SynthesisJob(job) => {
                job.status = Some(SynthesisJobStatus { common, ..SynthesisJobStatus::default() });
            }
            Object::ContextExtensionRun(run) => {
                run.status =
                    Some(ContextExtensionRunStatus { common, ..ContextExtensionRunStatus::default() });
            }
        }
        Ok(Self { object, jobs: BTreeMap::new(), remembered, rendezvous: free_port()? })
    }

    /// The world as the planner wants it.
    pub(crate) fn world(
        &self,
        synthesis: &BTreeMap<String, SynthesisJob>,
        now: Timestamp,
        executor: &Identity,
    ) -> World {
        World {
            object: self.object.clone(),
            jobs: self.jobs.values().map(|job| job.job().clone()).collect(),
            pods: self.jobs.values().flat_map(JobController::pods).cloned().collect(),
            synthesis: synthesis.clone(),
            obstacles: Vec::new(),
            now,
            config: OperatorConfig {
                cluster: executor.cluster.clone(),
                image: "local".into(),
                outage_timeout_seconds: executor.outage_timeout_seconds,
                rendezvous_host: Some("127.0.0.1".into()),
                ports: Ports { rendezvous: self.rendezvous, progress: 0 },
                one_machine: true,
                threads_per_rank: threads_per_process(&self.object.spec()),
            },
        }
    }

    /// Writes a status; `false` when it is the present one.
    pub(crate) fn write_status(
        &mut self,
        status: ObjectStatus,
        folder: &OutFolder,
    ) -> Result<bool, RunError> {
        if status_of(&self.object).as_ref() == Some(&status) {
            return Ok(false);
        }
        set_status(&mut self.object, status);
        self.remembered.status = self.object.to_json()?.get("status").cloned().unwrap_or_default();
        folder.remember(self.object.kind(), self.object.name(), &self.remembered)?;
        Ok(true)
    }

    /// SynthesisJobs that the object names and `.local` remembers: their data may come from an
    /// earlier run whose manifest was not given again. What cannot be read does not exist.
    pub(crate) fn synthesis_of_earlier_runs(&self, folder: &OutFolder) -> Vec<(String, SynthesisJob)> {
        let Object::ContextExtensionRun(run) = &self.object else { return Vec::new() };
        let names = run
            .spec
            .data
            .iter()
            .filter_map(|data| data.synthesis_job_ref.as_ref())
            .map(|job| job.name.clone());
        let recall = |name: String| {
            let old = folder.recall("SynthesisJob", &name).ok()??;
            let object = json!({
                "apiVersion": API_VERSION,
                "kind": "SynthesisJob",
                "metadata": {"name": name, "namespace": self.object.namespace(), "uid": old.uid},
                "spec": old.spec,
                "status": old.status,
            });
            Some((name, serde_json::from_value(object).ok()?))
        };
        names.filter_map(recall).collect()
    }

    /// A Job was created: the next one gets another port, since the old pods may still hold theirs.
    pub(crate) fn used_port(&mut self) -> Result<(), RunError> {
        self.rendezvous = free_port()?;
        Ok(())
    }

    /// Whether no process of the object lives.
    pub(crate) fn idle(&self) -> bool {
        self.jobs.values().all(JobController::quiet)
    }
}

/// Why an object cannot be worked on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RunError {
    /// Its file in `.local`.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// Not representable as JSON.
    #[error("the object cannot be written as JSON: {0}")]
    Json(#[from] serde_json::Error),
    /// No port.
    #[error("no free port on 127.0.0.1: {0}")]
    Port(#[from] std::io::Error),
}

fn status_of(object: &Object) -> Option<ObjectStatus> {
    match object {
        Object::SynthesisJob(job) => job.status.clone().map(|s| ObjectStatus::SynthesisJob(Box::new(s))),
        Object::ContextExtensionRun(run) => {
            run.status.clone().map(|s| ObjectStatus::ContextExtensionRun(Box::new(s)))
        }
    }
}

fn set_status(object: &mut Object, status: ObjectStatus) {
    match (object, status) {
        (Object::SynthesisJob(job), ObjectStatus::SynthesisJob(status)) => job.status = Some(*status),
        (Object::ContextExtensionRun(run), ObjectStatus::ContextExtensionRun(status)) => {
            run.status = Some(*status)
        }
        // The planner answers with the status of the kind that it was asked about.
        _ => {}
    }
}

/// The machine's cores shared by the processes of the largest Job; at least one each.
fn threads_per_process(spec: &RunSpec) -> u32 {
    let processes = match spec {
        RunSpec::SynthesisJob(spec) => spec.workers,
        RunSpec::ContextExtensionRun(spec) => {
            let ranks = spec.stages.iter().map(|stage| stage.parallelism(&spec.parallelism).ranks());
            ranks.max().unwrap_or(1)
        }
    };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    (u32::try_from(cores).unwrap_or(1) / processes.max(1)).max(1)
}

fn free_port() -> std::io::Result<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}
