//! The task file: all that a pod gets to know, one small JSON file in an immutable ConfigMap.
//!
//! Invariant: written once per attempt by the planner, read by the pod; URIs in it are absolute.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::{
    common::CommonSpec,
    context_extension_run::{ContextExtensionRunSpec, Stage},
    step::Step,
    synthesis_job::SynthesisJobSpec,
};

/// Environment variable with the path of the task file.
pub const ENV_TASK: &str = "LONGSTRAP_TASK";
/// Environment variable with the pod's UID.
pub const ENV_POD_UID: &str = "LONGSTRAP_POD_UID";
/// Environment variable with the path of the termination file.
pub const ENV_TERMINATION_FILE: &str = "LONGSTRAP_TERMINATION_FILE";
/// Environment variable with the port of the progress service.
pub const ENV_PROGRESS_PORT: &str = "LONGSTRAP_PROGRESS_PORT";
/// Environment variable with the file that gets `host:port` of the progress service when its port is 0.
pub const ENV_PROGRESS_ADDR_FILE: &str = "LONGSTRAP_PROGRESS_ADDR_FILE";
/// Environment variable with the pod's scratch folder.
pub const ENV_CACHE_DIR: &str = "LONGSTRAP_CACHE_DIR";
/// Environment variable with the folder of the storage's Secret: one file for each variable of the SDK.
pub const ENV_CREDENTIALS_DIR: &str = "LONGSTRAP_CREDENTIALS_DIR";
/// Environment variable with the folder of the endpoints' API keys: one file for each endpoint, by name.
pub const ENV_API_KEYS_DIR: &str = "LONGSTRAP_API_KEYS_DIR";
/// Environment variable with the folder of the prompts of `spec.prompts`.
pub const ENV_PROMPTS_DIR: &str = "LONGSTRAP_PROMPTS_DIR";
/// Environment variable that an Indexed Job sets: the pod's index.
pub const ENV_INDEX: &str = "JOB_COMPLETION_INDEX";
/// The task file's format of this version.
pub const FORMAT_VERSION: u32 = 1;

/// All that a pod gets to know.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TaskFile {
    /// Format of this file; a reader refuses a newer one.
    pub format_version: u32,
    /// The object that the run belongs to.
    pub owner: Owner,
    /// Attempt of the object, from 1.
    pub attempt: u32,
    /// The step to do.
    pub step: Step,
    /// The object's spec.
    pub spec: RunSpec,
    /// Data of a ContextExtensionRun, by name; empty for a SynthesisJob.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub data: Vec<PinnedData>,
    /// Stages of this Job, indices into `spec.stages`; empty unless the step trains.
    #[serde(default = "no_stages")]
    pub stages: Range<u32>,
    /// Pods of this Job.
    pub workers: u32,
    /// Processes of one training pod.
    pub ranks_per_node: u32,
    /// Compute threads of one process: decides no bits, is never guessed from the machine.
    pub threads_per_rank: u32,
    /// In-place failures without progress after which an agent gives up.
    pub backoff_limit: u32,
    /// Seconds without progress after which a training process counts as hanging.
    pub rank_timeout_seconds: u64,
    /// Seconds that a pod waits for storage or an endpoint that is away.
    pub outage_timeout_seconds: u64,
    /// DNS name or address of the pod of index 0.
    pub rendezvous_host: String,
    /// Ports that pods listen on.
    pub ports: Ports,
    /// All pods of the run are processes of one machine and share its memory: the local executor.
    /// Pods of a cluster have limits of their own, which say nothing about each other.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub one_machine: bool,
    /// Seconds from SIGTERM to SIGKILL of this Job's pods; absent where nobody kills them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grace_seconds: Option<u32>,
}

impl TaskFile {
    /// Reads a task file.
    ///
    /// # Errors
    /// When it is no task file, or one of a newer format.
    pub fn from_json(text: &str) -> Result<Self, TaskError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Version {
            format_version: u32,
        }
        let version: Version = serde_json::from_str(text)?;
        if version.format_version > FORMAT_VERSION {
            return Err(TaskError::TooNew(version.format_version));
        }
        Ok(serde_json::from_str(text)?)
    }

    /// The stage that the optimizer step belongs to, counted from 1 over all stages of the run.
    pub fn stage_of_step(&self, step: u64) -> Option<&Stage> {
        let RunSpec::ContextExtensionRun(spec) = &self.spec else { return None };
        let mut end = 0;
        spec.stages.iter().find(|stage| {
            end += stage.steps;
            step <= end
        })
    }

    /// Processes of the whole Job.
    pub fn world_size(&self) -> u32 {
        self.workers * self.ranks_per_node
    }
}

/// Why a task file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TaskError {
    /// Not JSON, or not these fields.
    #[error("the task file is not readable: {0}")]
    Malformed(#[from] serde_json::Error),
    /// From a newer version.
    #[error(
        "the task file has format {0}; this version reads up to {FORMAT_VERSION}: use the image that belongs to the operator"
    )]
    TooNew(u32),
}

/// The object that a run belongs to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Owner {
    /// Identity of the cluster, or of the output folder of a local run.
    pub cluster: String,
    /// Namespace of the object.
    pub namespace: String,
    /// Name of the object.
    pub name: String,
    /// UID of the object.
    pub uid: String,
}

/// The spec of either kind.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum RunSpec {
    /// Of a SynthesisJob.
    SynthesisJob(Box<SynthesisJobSpec>),
    /// Of a ContextExtensionRun.
    ContextExtensionRun(Box<ContextExtensionRunSpec>),
}

impl RunSpec {
    /// The fields that both kinds have.
    pub fn common(&self) -> &CommonSpec {
        match self {
            Self::SynthesisJob(spec) => &spec.common,
            Self::ContextExtensionRun(spec) => &spec.common,
        }
    }
}

/// A data source with the digest of its manifest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PinnedData {
    /// Name in `spec.data`.
    pub name: String,
    /// Where the data is.
    pub uri: String,
    /// Digest of its manifest; `None` for data of a `uri` that `prepare` has not read yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
}

/// Ports that pods listen on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Ports {
    /// Rendezvous of the agents, on the pod of index 0.
    pub rendezvous: u16,
    /// Progress service of every pod.
    pub progress: u16,
}

impl Default for Ports {
    fn default() -> Self {
        Self { rendezvous: 7077, progress: 7078 }
    }
}

fn no_stages() -> Range<u32> {
    0..0
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn optimizer_steps_belong_to_stages() {
        let stage = |name: &str, steps: u64| json!({"name": name, "contextLength": 512, "steps": steps});
        let task = json!({
            "formatVersion": FORMAT_VERSION,
            "owner": {"cluster": "c", "namespace": "n", "name": "run", "uid": "u"},
            "attempt": 1,
            "step": "train-1",
            "spec": {"contextExtensionRun": {
                "storage": {"uri": "s3://b/run"},
                "model": {"uri": "s3://b/model"},
                "data": [],
                "stages": [stage("a", 2), stage("b", 3)],
            }},
            "stages": {"start": 1, "end": 2},
            "workers": 1,
            "ranksPerNode": 1,
            "threadsPerRank": 1,
            "backoffLimit": 1,
            "rankTimeoutSeconds": 1,
            "outageTimeoutSeconds": 1,
            "rendezvousHost": "h",
            "ports": Ports::default(),
        });
        let task = TaskFile::from_json(&task.to_string()).unwrap();
        assert_eq!(task.grace_seconds, None, "a file of an earlier version");
        for (step, stage) in [(1, Some("a")), (2, Some("a")), (3, Some("b")), (5, Some("b")), (6, None)] {
            assert_eq!(task.stage_of_step(step).map(|s| s.name.as_str()), stage, "step {step}");
        }
    }
}
