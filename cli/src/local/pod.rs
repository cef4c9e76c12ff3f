//! Pod objects of local processes: made from a Job's template, then moved through the phases that
//! the planner reads. A pod says only what a kubelet would say.

use jiff::Timestamp;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{
    ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStatus, Pod, PodStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference, Time};

use super::policy::WORKER;

const INDEX: &str = "batch.kubernetes.io/job-completion-index";
const JOB_NAME: &str = "batch.kubernetes.io/job-name";
const JOB_UID: &str = "batch.kubernetes.io/controller-uid";
const FAILURES: &str = "batch.kubernetes.io/job-index-failure-count";
const IGNORED: &str = "batch.kubernetes.io/job-index-ignored-failure-count";

/// How a pod's process ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Exit {
    /// Exit status; 128 + number for a signal, as a container runtime reports it.
    pub(crate) code: i32,
    /// The signal that ended it.
    pub(crate) signal: Option<i32>,
    /// What the process left in its termination file.
    pub(crate) message: Option<String>,
}

/// A new pod of `job` for `index`, after `failures` counted and `ignored` ignored failures of that
/// index. Its name is that of the Job with the index and the first characters of `uid`.
pub(crate) fn create(job: &Job, index: u32, failures: u32, ignored: u32, uid: &str, now: Timestamp) -> Pod {
    let job_name = job.metadata.name.clone().unwrap_or_default();
    let job_uid = job.metadata.uid.clone().unwrap_or_default();
    let template = job.spec.as_ref().map(|spec| spec.template.clone()).unwrap_or_default();
    let mut metadata = template.metadata.unwrap_or_default();
    let labels = metadata.labels.get_or_insert_default();
    labels.insert(INDEX.into(), index.to_string());
    labels.insert(JOB_NAME.into(), job_name.clone());
    labels.insert(JOB_UID.into(), job_uid.clone());
    let annotations = metadata.annotations.get_or_insert_default();
    annotations.insert(INDEX.into(), index.to_string());
    annotations.insert(FAILURES.into(), failures.to_string());
    annotations.insert(IGNORED.into(), ignored.to_string());
    let short: String = uid.chars().filter(char::is_ascii_alphanumeric).take(5).collect();
    Pod {
        metadata: ObjectMeta {
            name: Some(format!("{job_name}-{index}-{short}")),
            namespace: job.metadata.namespace.clone(),
            uid: Some(uid.to_owned()),
            creation_timestamp: Some(Time(now)),
            owner_references: Some(vec![OwnerReference {
                api_version: "batch/v1".into(),
                kind: "Job".into(),
                name: job_name,
                uid: job_uid,
                controller: Some(true),
                block_owner_deletion: None,
            }]),
            ..metadata
        },
        spec: template.spec,
        status: Some(PodStatus { phase: Some("Pending".into()), ..PodStatus::default() }),
    }
}

/// The process of `pod` runs.
pub(crate) fn set_running(pod: &mut Pod, now: Timestamp) {
    let status = pod.status.get_or_insert_default();
    status.phase = Some("Running".into());
    status.start_time = Some(Time(now));
    status.pod_ip = Some("127.0.0.1".into());
    let running = ContainerStateRunning { started_at: Some(Time(now)) };
    let state = ContainerState { running: Some(running), ..ContainerState::default() };
    status.container_statuses = Some(vec![container(true, state)]);
}

/// The process of `pod` ended.
pub(crate) fn set_terminated(pod: &mut Pod, exit: &Exit, now: Timestamp) {
    let status = pod.status.get_or_insert_default();
    status.phase = Some(if exit.code == 0 { "Succeeded" } else { "Failed" }.into());
    let terminated = ContainerStateTerminated {
        exit_code: exit.code,
        signal: exit.signal,
        message: exit.message.clone(),
        reason: Some(if exit.code == 0 { "Completed" } else { "Error" }.into()),
        started_at: status.start_time.clone(),
        finished_at: Some(Time(now)),
        container_id: None,
    };
    let state = ContainerState { terminated: Some(terminated), ..ContainerState::default() };
    status.container_statuses = Some(vec![container(false, state)]);
}

fn container(running: bool, state: ContainerState) -> ContainerStatus {
    ContainerStatus {
        name: WORKER.into(),
        ready: running,
        started: Some(running),
        state: Some(state),
        ..ContainerStatus::default()
    }
}
