//! The Job controller of this machine: which pod of an Indexed Job starts or stops next.
//!
//! Pure: time, UIDs and the ends of processes are passed in, decisions come out as actions. It
//! keeps the semantics that the planner relies on and no others: Indexed, `restartPolicy: Never`,
//! `podReplacementPolicy: Failed`, `podFailurePolicy`, `backoffLimitPerIndex` with its back-off,
//! `maxFailedIndexes`, `successPolicy`, and that `Complete` and `Failed` are withheld while a pod
//! terminates.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::batch::v1::{Job, JobCondition, JobStatus, SuccessPolicyRule};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::indexes::{contains, format_indexes};
use super::pod::{self, Exit};
use super::policy::{Verdict, backoff, judge};

/// What the executor has to do for a Job.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Action {
    /// Start the process of this new pod.
    Start(Box<Pod>),
    /// Ask the pod with this UID to stop (SIGTERM, then SIGKILL after its grace period).
    Terminate(String),
}

/// One index of the Job.
#[derive(Clone, Debug, Default)]
struct Index {
    failures: u32,
    ignored: u32,
    failed_at: Option<Timestamp>,
    done: Option<Done>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Done {
    Succeeded,
    Failed,
}

struct PodEntry {
    index: usize,
    pod: Pod,
    over: bool,
}

/// Why the Job ends, known before its last pod is gone.
struct Ending {
    complete: bool,
    reason: &'static str,
    message: String,
}

/// A Job and its pods.
pub(crate) struct JobController {
    job: Job,
    indexes: Vec<Index>,
    pods: Vec<PodEntry>,
    ending: Option<Ending>,
}

impl JobController {
    /// Takes a Job as the planner wants it, under `uid`.
    pub(crate) fn new(mut job: Job, uid: String, now: Timestamp) -> Self {
        job.metadata.uid = Some(uid);
        job.metadata.creation_timestamp = Some(Time(now));
        job.status = Some(JobStatus { start_time: Some(Time(now)), ..JobStatus::default() });
        let completions = job.spec.as_ref().and_then(|spec| spec.completions).unwrap_or(1);
        let indexes = vec![Index::default(); usize::try_from(completions).unwrap_or(0)];
        Self { job, indexes, pods: Vec::new(), ending: None }
    }

    /// The Job with its status.
    pub(crate) fn job(&self) -> &Job {
        &self.job
    }

    /// All pods that the Job ever had.
    pub(crate) fn pods(&self) -> impl Iterator<Item = &Pod> {
        self.pods.iter().map(|entry| &entry.pod)
    }

    /// Whether no process of the Job is left.
    pub(crate) fn quiet(&self) -> bool {
        self.pods.iter().all(|entry| entry.over)
    }

    /// The process of a pod was started.
    pub(crate) fn started(&mut self, uid: &str, now: Timestamp) {
        if let Some(entry) = self.entry(uid) {
            pod::set_running(&mut entry.pod, now);
        }
        self.write_status(now);
    }

    /// The process of a pod ended; its index is counted by the Job's rules.
    pub(crate) fn exited(&mut self, uid: &str, exit: &Exit, now: Timestamp) {
        let Some(entry) = self.entry(uid) else { return };
        if entry.over {
            return;
        }
        entry.over = true;
        pod::set_terminated(&mut entry.pod, exit, now);
        let (at, name) = (entry.index, entry.pod.metadata.name.clone().unwrap_or_default());
        let spec = self.job.spec.clone().unwrap_or_default();
        let Some(index) = self.indexes.get_mut(at) else { return };
        if exit.code == 0 {
            index.done = Some(Done::Succeeded);
        } else if self.ending.is_none() && self.job.metadata.deletion_timestamp.is_none() {
            index.failed_at = Some(now);
            match judge(spec.pod_failure_policy.as_ref(), exit.code, false) {
                Verdict::Ignore => index.ignored += 1,
                Verdict::Count => {
                    index.failures += 1;
                    let limit = spec.backoff_limit_per_index.unwrap_or(i32::MAX);
                    if i64::from(index.failures) > i64::from(limit) {
                        index.done = Some(Done::Failed);
                    }
                }
                Verdict::FailIndex => index.done = Some(Done::Failed),
                Verdict::FailJob { rule } => {
                    let message = format!(
                        "Container worker for pod {name} failed with exit code {} matching FailJob rule at index {rule}",
                        exit.code
                    );
                    self.ending = Some(Ending { complete: false, reason: "PodFailurePolicy", message });
                }
            }
        }
        self.decide_ending();
        self.write_status(now);
    }

    /// Marks the Job as being deleted in the foreground: its pods are asked to stop, no new one
    /// starts; it is gone when [`quiet`](Self::quiet).
    pub(crate) fn delete(&mut self, now: Timestamp) -> Vec<Action> {
        self.job.metadata.deletion_timestamp.get_or_insert(Time(now));
        let actions = self.terminate_all(now);
        self.write_status(now);
        actions
    }

    /// Starts what may start and stops what must stop.
    pub(crate) fn reconcile(&mut self, now: Timestamp, new_uid: &mut dyn FnMut() -> String) -> Vec<Action> {
        if self.job.metadata.deletion_timestamp.is_some() {
            return Vec::new();
        }
        self.decide_ending();
        if self.ending.is_some() {
            let actions = self.terminate_all(now);
            self.write_status(now);
            return actions;
        }
        let mut actions = Vec::new();
        let mut free =
            self.parallelism().saturating_sub(self.pods.iter().filter(|entry| !entry.over).count());
        for at in 0..self.indexes.len() {
            if free == 0 {
                break;
            }
            if self.startable_at(at).is_some_and(|when| when <= now) {
                let index = &self.indexes[at];
                let number = u32::try_from(at).unwrap_or(u32::MAX);
                let pod = pod::create(&self.job, number, index.failures, index.ignored, &new_uid(), now);
                self.pods.push(PodEntry { index: at, pod: pod.clone(), over: false });
                actions.push(Action::Start(Box::new(pod)));
                free -= 1;
            }
        }
        self.write_status(now);
        actions
    }

    /// When the next index may start again, if one waits for its back-off.
    pub(crate) fn next_start(&self) -> Option<Timestamp> {
        if self.ending.is_some() || self.job.metadata.deletion_timestamp.is_some() {
            return None;
        }
        (0..self.indexes.len()).filter_map(|at| self.startable_at(at)).min()
    }

    /// The earliest start of an index that has neither ended nor a pod that lives.
    fn startable_at(&self, at: usize) -> Option<Timestamp> {
        let index = &self.indexes[at];
        let alive = self.pods.iter().any(|entry| entry.index == at && !entry.over);
        if index.done.is_some() || alive {
            return None;
        }
        let delay: SignedDuration = backoff(index.failures + index.ignored);
        Some(
            index
                .failed_at
                .map_or(Timestamp::MIN, |failed| failed.checked_add(delay).unwrap_or(Timestamp::MAX)),
        )
    }

    fn entry(&mut self, uid: &str) -> Option<&mut PodEntry> {
        self.pods.iter_mut().find(|entry| entry.pod.metadata.uid.as_deref() == Some(uid))
    }

    fn parallelism(&self) -> usize {
        let spec = self.job.spec.as_ref();
        usize::try_from(spec.and_then(|spec| spec.parallelism).unwrap_or(1)).unwrap_or(0)
    }

    fn with(&self, done: Done) -> Vec<usize> {
        (0..self.indexes.len()).filter(|at| self.indexes[*at].done == Some(done)).collect()
    }

    fn terminate_all(&mut self, now: Timestamp) -> Vec<Action> {
        let alive = self.pods.iter_mut().filter(|entry| !entry.over);
        let fresh = alive.filter(|entry| entry.pod.metadata.deletion_timestamp.is_none());
        fresh
            .map(|entry| {
                entry.pod.metadata.deletion_timestamp = Some(Time(now));
                Action::Terminate(entry.pod.metadata.uid.clone().unwrap_or_default())
            })
            .collect()
    }

    fn decide_ending(&mut self) {
        if self.ending.is_some() {
            return;
        }
        let spec = self.job.spec.clone().unwrap_or_default();
        let (succeeded, failed) = (self.with(Done::Succeeded), self.with(Done::Failed));
        let rules = spec.success_policy.map(|policy| policy.rules).unwrap_or_default();
        let fulfilled = |rule: &SuccessPolicyRule| {
            let listed = rule.succeeded_indexes.as_deref();
            let counted =
                succeeded.iter().filter(|at| listed.is_none_or(|list| contains(list, **at))).count();
            let wanted = rule.succeeded_count.and_then(|count| usize::try_from(count).ok());
            let all = listed.map(|list| (0..self.indexes.len()).filter(|at| contains(list, *at)).count());
            wanted.or(all).is_some_and(|wanted| counted >= wanted)
        };
        if let Some(position) = rules.iter().position(fulfilled) {
            let message = format!("Matched rules at index {position}");
            self.ending = Some(Ending { complete: true, reason: "SuccessPolicy", message });
        } else if succeeded.len() == self.indexes.len() {
            let message = "Reached expected number of succeeded pods".into();
            self.ending = Some(Ending { complete: true, reason: "CompletionsReached", message });
        } else if spec
            .max_failed_indexes
            .is_some_and(|limit| failed.len() > usize::try_from(limit).unwrap_or(0))
        {
            let message = "Job has exceeded the specified maximal number of failed indexes".into();
            self.ending = Some(Ending { complete: false, reason: "MaxFailedIndexesExceeded", message });
        } else if succeeded.len() + failed.len() == self.indexes.len() {
            let message = "Job has failed indexes".into();
            self.ending = Some(Ending { complete: false, reason: "FailedIndexes", message });
        }
    }

    fn write_status(&mut self, now: Timestamp) {
        let count = |test: &dyn Fn(&PodEntry) -> bool| {
            Some(i32::try_from(self.pods.iter().filter(|entry| test(entry)).count()).unwrap_or(i32::MAX))
        };
        let phase = |entry: &PodEntry, phase: &str| {
            entry.pod.status.as_ref().and_then(|status| status.phase.as_deref()) == Some(phase)
        };
        let leaving = |entry: &PodEntry| entry.pod.metadata.deletion_timestamp.is_some();
        let failed_indexes = format_indexes(&self.with(Done::Failed));
        let mut status = JobStatus {
            active: count(&|entry| !entry.over && !leaving(entry)),
            ready: count(&|entry| !leaving(entry) && phase(entry, "Running")),
            terminating: count(&|entry| !entry.over && leaving(entry)),
            succeeded: count(&|entry| phase(entry, "Succeeded")),
            failed: count(&|entry| phase(entry, "Failed")),
            completed_indexes: Some(format_indexes(&self.with(Done::Succeeded))),
            failed_indexes: (!failed_indexes.is_empty()).then_some(failed_indexes),
            ..self.job.status.clone().unwrap_or_default()
        };
        if let Some(ending) = &self.ending {
            let conditions = status.conditions.get_or_insert_default();
            let mut set = |type_: &str| {
                if !conditions.iter().any(|condition| condition.type_ == type_) {
                    conditions.push(JobCondition {
                        type_: type_.into(),
                        status: "True".into(),
                        reason: Some(ending.reason.into()),
                        message: Some(ending.message.clone()),
                        last_transition_time: Some(Time(now)),
                        last_probe_time: Some(Time(now)),
                    });
                }
            };
            set(if ending.complete { "SuccessCriteriaMet" } else { "FailureTarget" });
            if self.pods.iter().all(|entry| entry.over) {
                set(if ending.complete { "Complete" } else { "Failed" });
                if ending.complete {
                    status.completion_time.get_or_insert(Time(now));
                }
            }
        }
        self.job.status = Some(status);
    }
}

#[cfg(test)]
#[path = "job_tests.rs"]
mod tests;
