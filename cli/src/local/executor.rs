//! The loop of a local run: observe, plan, apply, remember; then wait for what happens next.
//!
//! It wakes when a process ends, when a back-off is over, when the planner asked for it, on a
//! signal, and four times a second to show progress. Nothing else drives it.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use longstrap_crds::reason::Effect;
use longstrap_crds::{Object, SynthesisJob};
use longstrap_operator::{Child, Event, Plan, plan};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;

use super::clock::Clock;
use super::display::Display;
use super::folder::OutFolder;
use super::job::{Action, JobController};
use super::launch;
use super::mounts::KeyedData;
use super::outcome::{Outcome, Standing, described, outcome, standing};
use super::pod::Exit;
use super::process::{self, Ended, Handle};
use super::progress::{TICK, Watched};
use super::report::{self, PodReport};
use super::run::{Identity, Run, RunError};

/// Plans of one moment until nothing changes any more; far more than any object needs.
const SETTLING: usize = 200;

/// How the loop ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// By itself.
    Outcome(Outcome),
    /// Ctrl-C or SIGTERM; every pod has stopped.
    Interrupted,
}

/// Why the executor itself cannot go on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ExecutorError {
    /// One object.
    #[error("{object}: {source}")]
    Run { object: String, source: RunError },
    /// A defect of the planner; never an endless loop.
    #[error("{0}: the plan does not settle")]
    Restless(String),
    /// The operating system.
    #[error("signals cannot be handled: {0}")]
    Signals(std::io::Error),
}

/// A pod process that lives.
struct Living {
    run: usize,
    job: String,
    label: String,
    handle: Handle,
    watched: Watched,
    asked_to_stop: bool,
}

/// Works on a set of objects until they are settled.
pub(crate) struct Executor {
    folder: OutFolder,
    worker: PathBuf,
    clock: Clock,
    identity: Identity,
    data: KeyedData,
    runs: Vec<Run>,
    /// SynthesisJobs that only `.local` knows, complete in an earlier run.
    earlier: BTreeMap<String, SynthesisJob>,
    living: BTreeMap<String, Living>,
    ends: (mpsc::UnboundedSender<Ended>, mpsc::UnboundedReceiver<Ended>),
    display: Display,
    /// Lines already shown for each object: a standing is told once.
    told: BTreeSet<String>,
}

impl Executor {
    /// Takes up `objects`, whose URIs are absolute.
    pub(crate) fn new(
        folder: OutFolder,
        worker: PathBuf,
        clock: Clock,
        identity: Identity,
        data: KeyedData,
        objects: Vec<Object>,
    ) -> Result<Self, ExecutorError> {
        let take_up = |object: Object| {
            let name = described(&object);
            Run::take_up(object, &folder, clock.now(), new_uid)
                .map_err(|source| ExecutorError::Run { object: name, source })
        };
        let runs: Vec<Run> = objects.into_iter().map(take_up).collect::<Result<_, _>>()?;
        let earlier = runs.iter().flat_map(|run| run.synthesis_of_earlier_runs(&folder)).collect();
        Ok(Self {
            folder,
            worker,
            clock,
            identity,
            data,
            runs,
            earlier,
            living: BTreeMap::new(),
            ends: mpsc::unbounded_channel(),
            display: Display::new(),
            told: BTreeSet::new(),
        })
    }

    /// The objects with their statuses.
    pub(crate) fn objects(&self) -> impl Iterator<Item = &Object> {
        self.runs.iter().map(|run| &run.object)
    }

    /// Runs until everything is settled or a signal stops it; no pod process is left then.
    pub(crate) async fn work(&mut self) -> Result<End, ExecutorError> {
        let mut interrupt = Signals::new().map_err(ExecutorError::Signals)?;
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let wake = self.settle()?;
            if let Some(outcome) = self.outcome() {
                self.stop_all("the run is over");
                self.drain(&mut interrupt).await;
                return Ok(End::Outcome(outcome));
            }
            if self.living.is_empty() && wake.is_none() {
                // Nothing can wake the loop any more, whatever the planner waits for.
                self.runs.iter().filter(|run| standing(&run.object, true) == Standing::Working).for_each(
                    |run| {
                        self.display
                            .say(&format!("{}: nothing is planned for it here", described(&run.object)));
                    },
                );
                return Ok(End::Outcome(Outcome::Blocked));
            }
            let deadline = wake.map(|time| self.clock.instant(time));
            loop {
                tokio::select! {
                    Some(ended) = self.ends.1.recv() => {
                        self.ended(&ended);
                        break;
                    }
                    () = sleep_until(deadline) => break,
                    () = interrupt.next() => {
                        self.stop_all("stopping: the pods save their state");
                        self.drain(&mut interrupt).await;
                        return Ok(End::Interrupted);
                    }
                    _ = tick.tick() => self.show(),
                }
            }
        }
    }

    /// Plans and applies until nothing changes; returns when to plan again.
    fn settle(&mut self) -> Result<Option<Timestamp>, ExecutorError> {
        for _ in 0..SETTLING {
            let (mut changed, mut wake) = (false, Vec::new());
            for at in 0..self.runs.len() {
                let synthesis = self.synthesis();
                let now = self.clock.now();
                let plan = plan(&self.runs[at].world(&synthesis, now, &self.identity));
                wake.extend(plan.requeue);
                changed |= self.apply(at, plan, now)?;
                wake.extend(self.runs[at].jobs.values().filter_map(JobController::next_start));
            }
            if !changed {
                return Ok(wake.into_iter().min());
            }
        }
        Err(ExecutorError::Restless(
            self.runs.iter().map(|run| described(&run.object)).collect::<Vec<_>>().join(", "),
        ))
    }

    /// Applies a plan in the order that the planner asks for: status, deletions, creations.
    fn apply(&mut self, at: usize, plan: Plan, now: Timestamp) -> Result<bool, ExecutorError> {
        let run = &mut self.runs[at];
        let name = described(&run.object);
        let failed = |source| ExecutorError::Run { object: name.clone(), source };
        let mut changed = run.write_status(plan.status, &self.folder).map_err(failed)?;
        let mut actions: Vec<(String, Action)> = Vec::new();
        for child in plan.delete.iter().filter(|child| child.kind == "Job") {
            if let Some(job) = run.jobs.get_mut(&child.name) {
                actions.extend(job.delete(now).into_iter().map(|action| (child.name.clone(), action)));
            }
        }
        for child in plan.create {
            match child {
                Child::ConfigMap(map) => self.data.put_config_map(&map),
                Child::Service(_) => {}
                Child::Job(new) => {
                    let job = new.job;
                    let job_name = job.metadata.name.clone().unwrap_or_default();
                    if let Entry::Vacant(place) = run.jobs.entry(job_name) {
                        place.insert(JobController::new(job, new_uid(), now));
                        run.used_port().map_err(failed)?;
                        changed = true;
                    }
                }
            }
        }
        for (job_name, job) in &mut run.jobs {
            actions.extend(
                job.reconcile(now, &mut new_uid).into_iter().map(|action| (job_name.clone(), action)),
            );
        }
        let before = run.jobs.len();
        run.jobs.retain(|_, job| !(job.job().metadata.deletion_timestamp.is_some() && job.quiet()));
        changed |= run.jobs.len() != before || !actions.is_empty();
        // What ends the run is told with its standing.
        let news = |event: &&Event| event.warning && event.reason.effect() == Effect::Informs;
        for event in plan.events.iter().filter(news) {
            self.display.say(&format!("{name}: {}: {}", event.reason, event.message));
        }
        for (job, action) in actions {
            match action {
                Action::Start(pod) => self.start(at, job, &pod),
                Action::Terminate(uid) => self.stop(&uid),
            }
        }
        Ok(changed)
    }

    fn start(&mut self, at: usize, job: String, pod: &Pod) {
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let label = report::label(&self.runs[at].object, pod);
        let lock = self.folder.lock_descriptor();
        let started = launch::launch(pod, &self.data, &self.folder, &self.worker, lock)
            .map_err(|error| error.to_string())
            .and_then(|launch| {
                process::start(launch, self.ends.0.clone()).map_err(|error| error.to_string())
            });
        match started {
            Ok(handle) => {
                let watched = Watched::new(launch::address_file(&self.folder, pod));
                if report::speaks(pod) {
                    self.display.open(&uid, &label);
                }
                self.controller(at, &job, |job, now| job.started(&uid, now));
                self.living
                    .insert(uid, Living { run: at, job, label, handle, watched, asked_to_stop: false });
            }
            // As a kubelet: a container that cannot be started has failed.
            Err(message) => {
                self.display.say(&format!("{label}: {message}"));
                let exit = Exit { code: 128, signal: None, message: Some(message) };
                self.controller(at, &job, |job, now| job.exited(&uid, &exit, now));
            }
        }
    }

    fn stop(&mut self, uid: &str) {
        if let Some(living) = self.living.get_mut(uid) {
            living.asked_to_stop = true;
            living.handle.stop();
        }
    }

    fn ended(&mut self, ended: &Ended) {
        let Some(living) = self.living.remove(&ended.uid) else { return };
        self.display.close(&ended.uid);
        let pod = self.runs[living.run].jobs.get(&living.job).and_then(|job| {
            job.pods().find(|pod| pod.metadata.uid.as_deref() == Some(ended.uid.as_str())).cloned()
        });
        if let Some(pod) = pod {
            let log = self.folder.log(launch::name(&pod));
            let report = PodReport {
                label: &living.label,
                exit: &ended.exit,
                log: &log,
                asked_to_stop: living.asked_to_stop,
            };
            report.lines().iter().for_each(|line| self.display.say(line));
            // Its termination message is read; a folder that cannot be removed is removed later.
            let _ = std::fs::remove_dir_all(self.folder.pod_dir(launch::name(&pod)));
        }
        self.controller(living.run, &living.job, |job, now| job.exited(&ended.uid, &ended.exit, now));
    }

    fn controller(&mut self, at: usize, job: &str, act: impl FnOnce(&mut JobController, Timestamp)) {
        let now = self.clock.now();
        if let Some(job) = self.runs[at].jobs.get_mut(job) {
            act(job, now);
        }
    }

    fn show(&mut self) {
        for (uid, living) in &self.living {
            if let Some(report) = living.watched.latest() {
                self.display.update(uid, &report);
            }
        }
    }

    fn synthesis(&self) -> BTreeMap<String, SynthesisJob> {
        let mut all = self.earlier.clone();
        for run in &self.runs {
            if let Object::SynthesisJob(job) = &run.object {
                all.insert(run.object.name().to_owned(), (**job).clone());
            }
        }
        all
    }

    /// Tells each new standing once.
    fn outcome(&mut self) -> Option<Outcome> {
        let standings: Vec<Standing> =
            self.runs.iter().map(|run| standing(&run.object, run.idle())).collect();
        for (run, standing) in self.runs.iter().zip(&standings) {
            let line = match standing {
                Standing::Working => continue,
                Standing::Complete => format!("{}: complete", described(&run.object)),
                Standing::Suspended => format!("{}: suspended by spec.suspend", described(&run.object)),
                Standing::Waiting(_) if self.runs.len() > 1 && standings.contains(&Standing::Working) => {
                    continue;
                }
                Standing::Waiting(why) => format!("{}: waits: {why}", described(&run.object)),
                Standing::Outage(why) => {
                    format!("{}: something outside stayed away: {why}", described(&run.object))
                }
                Standing::Blocked(why) => format!("{}: blocked: {why}", described(&run.object)),
                Standing::Failed(why) => format!("{}: failed: {why}", described(&run.object)),
            };
            if self.told.insert(line.clone()) {
                self.display.say(&line);
            }
        }
        outcome(&standings)
    }

    fn stop_all(&mut self, why: &str) {
        if !self.living.is_empty() {
            self.display.say(why);
        }
        let uids: Vec<String> = self.living.keys().cloned().collect();
        uids.iter().for_each(|uid| self.stop(uid));
    }

    /// Waits for the last process; a second signal does not wait for their grace period.
    async fn drain(&mut self, interrupt: &mut Signals) {
        while !self.living.is_empty() {
            tokio::select! {
                Some(ended) = self.ends.1.recv() => self.ended(&ended),
                () = interrupt.next() => self.living.values().for_each(|living| living.handle.kill()),
            }
        }
    }
}

/// Ctrl-C and SIGTERM.
struct Signals(Signal, Signal);

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self(signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?))
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.0.recv() => {}
            _ = self.1.recv() => {}
        }
    }
}

async fn sleep_until(deadline: Option<tokio::time::Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// A random UID from the kernel; the process number stands in where there is no /proc, since UIDs
/// only have to differ within a folder.
pub(crate) fn new_uid() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/uuid").map_or_else(
        |_| format!("{}-{}", std::process::id(), Timestamp::now().as_nanosecond()),
        |uid| uid.trim().to_owned(),
    )
}
