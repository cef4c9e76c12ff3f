//! The gang as the agent of index 0 sees it. Pure: reports and time in, orders and tasks out.
//!
//! Invariant: at most one generation has running ranks; the next one forms only when every pod
//! that is still heard has said that its ranks of the one before are gone.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use longstrap_crds::{ExitCode, Reason};
use longstrap_storage::CheckpointId;
use tokio::time::Instant;

use crate::message::{Exit, Gang, Order, Outcome, PodReport, PodState};

/// What the task file decides.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub(crate) pods: u32,
    pub(crate) ranks_per_pod: u32,
    pub(crate) backoff_limit: u32,
    /// A gang that is not complete after this long is an error.
    pub(crate) join_timeout: Duration,
    /// A pod that is not heard for this long is lost.
    pub(crate) silence: Duration,
}

/// What the coordinator needs done in storage; the answer comes back by the method named.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Task {
    /// Find the newest checkpoint: [`Coordinator::judged`].
    Judge,
    /// Claim the next generation: [`Coordinator::claimed`].
    Claim,
    /// Commit the step's end: [`Coordinator::finished`].
    Finish,
}

struct Pod {
    heard: Instant,
    /// Number of its newest report.
    spoke: u64,
    report: PodReport,
}

enum Phase {
    /// Waits for every pod to join, by a report later than `after`: an older one may be of the
    /// gang before.
    Forming {
        since: Instant,
        after: u64,
    },
    /// All have joined, with these addresses by pod.
    Claiming {
        addresses: Vec<Vec<String>>,
    },
    /// Ranks run.
    Running {
        gang: Gang,
        addresses: Vec<Vec<String>>,
        outcomes: BTreeMap<u32, Outcome>,
    },
    /// Ranks are being stopped.
    Stopping {
        gang: Gang,
        save: bool,
        after: u64,
        outcomes: BTreeMap<u32, Outcome>,
    },
    /// A failure, and whether anything was committed since its gang began is not known yet.
    Judging {
        resume: Option<String>,
        failure: String,
    },
    /// All ranks are done.
    Finishing,
    Ended {
        exit: Exit,
        after: u64,
    },
}

/// See the module.
pub(crate) struct Coordinator {
    settings: Settings,
    pods: BTreeMap<u32, Pod>,
    /// UIDs of pods that were replaced.
    retired: BTreeSet<String>,
    phase: Phase,
    /// Counts reports.
    reports: u64,
    /// In a row, without a newer checkpoint.
    failures: u32,
}

impl Coordinator {
    pub(crate) fn new(settings: Settings, now: Instant) -> Self {
        Self {
            settings,
            pods: BTreeMap::new(),
            retired: BTreeSet::new(),
            phase: Phase::Forming { since: now, after: 0 },
            reports: 0,
            failures: 0,
        }
    }

    /// A pod speaks; the answer is what it shall do.
    ///
    /// # Errors
    /// Why this speaker is none of the gang.
    pub(crate) fn report(&mut self, now: Instant, report: PodReport) -> Result<Order, String> {
        let index = report.index;
        if index >= self.settings.pods {
            return Err(format!("pod {index} is none of the {} pods of this Job", self.settings.pods));
        }
        if self.retired.contains(&report.pod_uid) {
            return Err(format!("another pod has index {index} now"));
        }
        let uid = report.pod_uid.clone();
        self.reports += 1;
        let pod = Pod { heard: now, spoke: self.reports, report };
        if let Some(old) = self.pods.insert(index, pod)
            && old.report.pod_uid != uid
        {
            self.retired.insert(old.report.pod_uid);
        }
        self.advance(now);
        Ok(self.order(index))
    }

    /// Time passes.
    pub(crate) fn tick(&mut self, now: Instant) {
        let silence = self.settings.silence;
        self.pods.retain(|_, pod| now.duration_since(pod.heard) < silence);
        self.advance(now);
    }

    /// What shall be done in storage now.
    pub(crate) fn task(&self) -> Option<Task> {
        match self.phase {
            Phase::Judging { .. } => Some(Task::Judge),
            Phase::Claiming { .. } => Some(Task::Claim),
            Phase::Finishing => Some(Task::Finish),
            _ => None,
        }
    }

    /// Answer to [`Task::Judge`]: a checkpoint that is newer than the one that the failed gang
    /// began with is progress.
    pub(crate) fn judged(&mut self, now: Instant, newest: Option<CheckpointId>) {
        let Phase::Judging { resume, failure } = &self.phase else { return };
        let began: Option<CheckpointId> = resume.as_ref().and_then(|key| key.parse().ok());
        self.failures = if newest > began { 0 } else { self.failures + 1 };
        let limit = self.settings.backoff_limit.max(1);
        tracing::warn!(failures = self.failures, limit, %failure, "the gang failed");
        if self.failures < limit {
            self.phase = self.forming(now);
            return;
        }
        let message = format!(
            "{} failures in a row without a new checkpoint (backoffLimit {}); the last: {failure}",
            self.failures, self.settings.backoff_limit
        );
        let reason = Some(Reason::BackoffLimitExceeded);
        self.end(Exit { code: ExitCode::Exhausted, reason, message });
    }

    /// Answer to [`Task::Claim`].
    pub(crate) fn claimed(
        &mut self,
        now: Instant,
        generation: u64,
        token: String,
        resume: Option<CheckpointId>,
    ) {
        let Phase::Claiming { addresses } = &mut self.phase else { return };
        let addresses = std::mem::take(addresses);
        let peers = addresses.iter().flatten().cloned().collect();
        let gang = Gang { generation, peers, token, resume: resume.map(|id| id.key()) };
        tracing::info!(generation, resume = gang.resume, "the gang is complete");
        self.phase = Phase::Running { gang, addresses, outcomes: BTreeMap::new() };
        self.advance(now);
    }

    /// Answer to [`Task::Finish`].
    pub(crate) fn finished(&mut self) {
        self.end(Exit::new(ExitCode::Committed, ""));
    }

    /// Ends all agents.
    pub(crate) fn end(&mut self, exit: Exit) {
        self.phase = Phase::Ended { exit, after: self.reports };
    }

    /// Whether every other pod has heard of what was decided last (the end, or a stop), so that
    /// the pod of index 0 may go.
    pub(crate) fn all_told(&self) -> bool {
        let (Phase::Ended { after, .. } | Phase::Stopping { after, .. }) = &self.phase else {
            return true;
        };
        self.pods.iter().all(|(index, pod)| *index == 0 || pod.spoke > *after)
    }

    /// Words for the progress report.
    pub(crate) fn activity(&self) -> Option<String> {
        match &self.phase {
            Phase::Forming { .. } => match self.absent() {
                absent if absent.is_empty() => Some("forming the gang".to_owned()),
                absent => Some(format!("waiting for {} to join", self.name(&absent))),
            },
            Phase::Stopping { .. } => Some("stopping the ranks".to_owned()),
            _ => None,
        }
    }

    fn advance(&mut self, now: Instant) {
        match &mut self.phase {
            Phase::Forming { since, after } => {
                let since = *since;
                if let Some(addresses) = joined(&self.pods, self.settings.pods, *after) {
                    self.phase = Phase::Claiming { addresses };
                } else if now.duration_since(since) >= self.settings.join_timeout {
                    let absent = self.absent();
                    let message = format!(
                        "{} never joined: waited {} s; see the log of its pod",
                        self.name(&absent),
                        self.settings.join_timeout.as_secs()
                    );
                    self.end(Exit::new(ExitCode::Failed, message));
                }
            }
            Phase::Running { gang, addresses, outcomes } => {
                let mut broken = None;
                for index in 0..self.settings.pods {
                    let started = &addresses[index as usize];
                    match self.pods.get(&index) {
                        None => broken = Some((index, "is no longer heard")),
                        Some(pod) => match observe(&pod.report, gang, started, outcomes) {
                            true => {}
                            false => broken = Some((index, "has lost its ranks")),
                        },
                    }
                }
                let leaving = self.pods.values().any(|pod| pod.report.leaving);
                let ended_early = outcomes.values().any(|outcome| *outcome != Outcome::Done);
                if outcomes.len() == self.settings.pods as usize && !ended_early {
                    self.phase = Phase::Finishing;
                } else if broken.is_some() || leaving || ended_early {
                    if let Some((index, why)) = broken {
                        tracing::warn!("pod {index} {why}: the gang forms again");
                    }
                    // Ranks save their state together: worth a try when nobody is missing.
                    let save = broken.is_none()
                        && !outcomes.values().any(|o| matches!(o, Outcome::Failed(_) | Outcome::Hopeless(_)));
                    let (gang, outcomes) = (gang.clone(), std::mem::take(outcomes));
                    self.phase = Phase::Stopping { gang, save, after: self.reports, outcomes };
                    self.advance(now);
                }
            }
            Phase::Stopping { gang, outcomes, .. } => {
                let mut all_gone = true;
                for pod in self.pods.values() {
                    match &pod.report.state {
                        PodState::Running { generation } if *generation == gang.generation => {
                            all_gone = false;
                        }
                        _ => {
                            observe(&pod.report, gang, &[], outcomes);
                        }
                    }
                }
                if all_gone {
                    let (resume, outcomes) = (gang.resume.clone(), std::mem::take(outcomes));
                    self.conclude(now, resume, outcomes);
                }
            }
            Phase::Claiming { .. } | Phase::Judging { .. } | Phase::Finishing | Phase::Ended { .. } => {}
        }
    }

    /// All ranks of a stopped gang are gone: what now?
    fn conclude(&mut self, now: Instant, resume: Option<String>, outcomes: BTreeMap<u32, Outcome>) {
        let hopeless = |code: ExitCode| {
            outcomes.values().find_map(|outcome| match outcome {
                Outcome::Hopeless(exit) if exit.code == code => Some(exit.clone()),
                _ => None,
            })
        };
        if let Some(exit) = hopeless(ExitCode::Invalid).or_else(|| hopeless(ExitCode::Outage)) {
            self.end(exit);
            return;
        }
        let failures = outcomes.iter().filter_map(|(index, outcome)| match outcome {
            Outcome::Failed(message) => Some(format!("pod {index}: {message}")),
            _ => None,
        });
        let failures: Vec<_> = failures.collect();
        self.phase = match failures.is_empty() {
            false => Phase::Judging { resume, failure: failures.join("; ") },
            true => self.forming(now),
        };
    }

    fn order(&self, index: u32) -> Order {
        let state = self.pods.get(&index).map(|pod| &pod.report.state);
        match (&self.phase, state) {
            (Phase::Ended { exit, .. }, _) => Order::Exit(exit.clone()),
            (Phase::Running { gang, outcomes, .. }, Some(PodState::Joining { .. })) => {
                match outcomes.contains_key(&index) {
                    true => Order::Wait,
                    false => Order::Start(gang.clone()),
                }
            }
            (Phase::Stopping { gang, save, .. }, Some(PodState::Running { generation })) => {
                Order::Stop { generation: *generation, save: *save && *generation == gang.generation }
            }
            // Ranks of a gang that is none (the coordinator was replaced).
            (Phase::Forming { .. } | Phase::Claiming { .. }, Some(PodState::Running { generation })) => {
                Order::Stop { generation: *generation, save: false }
            }
            (Phase::Running { gang, .. }, Some(PodState::Running { generation }))
                if *generation != gang.generation =>
            {
                Order::Stop { generation: *generation, save: false }
            }
            _ => Order::Wait,
        }
    }

    fn forming(&self, now: Instant) -> Phase {
        Phase::Forming { since: now, after: self.reports }
    }

    fn absent(&self) -> Vec<u32> {
        let joined = |index: &u32| {
            let state = self.pods.get(index).map(|pod| &pod.report.state);
            matches!(state, Some(PodState::Joining { .. }))
        };
        (0..self.settings.pods).filter(|index| !joined(index)).collect()
    }

    /// "pod 2 (ranks 4 to 5)".
    fn name(&self, pods: &[u32]) -> String {
        let each = self.settings.ranks_per_pod;
        let name = |pod: &u32| match each {
            1 => format!("pod {pod} (rank {pod})"),
            _ => format!("pod {pod} (ranks {} to {})", pod * each, (pod + 1) * each - 1),
        };
        pods.iter().map(name).collect::<Vec<_>>().join(", ")
    }
}

/// Addresses by pod, when all have joined after report `after`.
fn joined(pods: &BTreeMap<u32, Pod>, count: u32, after: u64) -> Option<Vec<Vec<String>>> {
    let addresses = |index| match pods.get(&index).filter(|pod| pod.spoke > after)?.report.clone() {
        PodReport { state: PodState::Joining { addresses }, leaving: false, .. } => Some(addresses),
        _ => None,
    };
    (0..count).map(addresses).collect()
}

/// Takes down how a pod of `gang` ended; false when it has lost its ranks without a word.
fn observe(
    report: &PodReport,
    gang: &Gang,
    started: &[String],
    outcomes: &mut BTreeMap<u32, Outcome>,
) -> bool {
    match &report.state {
        PodState::Stopped { generation, outcome } if *generation == gang.generation => {
            outcomes.insert(report.index, outcome.clone());
            true
        }
        PodState::Running { generation } => *generation == gang.generation,
        // It has not heard of the start yet, or it has said how its ranks ended.
        PodState::Joining { addresses } => addresses == started || outcomes.contains_key(&report.index),
        PodState::Stopped { .. } => false,
    }
}

#[cfg(test)]
mod tests;
