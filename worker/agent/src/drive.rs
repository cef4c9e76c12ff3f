//! The agent's loop: the only place where supervisor, coordinator, processes and time meet.

use std::time::Duration;

use anyhow::Context as _;
use longstrap_crds::TaskFile;
use longstrap_crds::status::CheckpointStatus;
use longstrap_proto::v1alpha1::rank_report::Report;
use longstrap_runtime::{StepContext, StepError, StepResult};
use longstrap_storage::{Digest, keys, newest_checkpoint};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use crate::claim::{claim, commit_end, has_ended};
use crate::coordinator::{Coordinator, Settings, Task};
use crate::message::{Exit, Order, PodReport, PodState};
pub use crate::ranks::RankCommand;
use crate::ranks::{RankEvent, Ranks, listen};
use crate::rendezvous::{Party, Shared, Way, own_address, serve};
use crate::supervisor::{Action, Event, Limits, Supervisor};

/// How often a pod speaks to its coordinator.
const BEAT: Duration = Duration::from_millis(200);
/// A pod or coordinator that is not heard for this long is lost.
const SILENCE: Duration = Duration::from_secs(20);
/// The coordinator stays this long for the others to hear of the end.
const FAREWELL: Duration = Duration::from_secs(5);
/// What of a pod's grace period is the agent's: to kill ranks that are not done, to say farewell and
/// to write the termination message.
const FINAL_WORDS: Duration = Duration::from_secs(15);

/// Runs a training pod: `<this program> rank` is started for each rank.
///
/// # Errors
/// As its ranks end; `Exhausted` at `backoffLimit`; `Stopped` after SIGTERM.
pub async fn run(ctx: &StepContext) -> StepResult {
    let program = std::env::current_exe().context("path of this program")?.into_os_string();
    run_with(ctx, RankCommand { program, args: vec!["rank".into()] }).await
}

/// [`run`] with another program as the rank.
///
/// # Errors
/// As [`run`].
pub async fn run_with(ctx: &StepContext, command: RankCommand) -> StepResult {
    let fingerprint = ctx.store.try_get(keys::RUN).await?.map(|run| Digest::of(run).to_string());
    let newest = newest_checkpoint(&ctx.store).await?;
    ctx.termination.write(|message| {
        message.fingerprint = fingerprint;
        message.committed = newest.map_or(0, |id| id.step);
    })?;
    if has_ended(ctx).await? {
        return Ok(());
    }
    let host = find_own_address(ctx).await?;
    let way = match ctx.index {
        0 => {
            let coordinator = coordinate(ctx).await?;
            Way::Here(coordinator)
        }
        _ => Way::there(&ctx.task),
    };
    Agent::new(ctx, command, host).drive(way).await
}

fn timeout(ctx: &StepContext) -> Duration {
    Duration::from_secs(ctx.task.rank_timeout_seconds)
}

/// Times that the ranks of a pod are given by its task.
fn limits(task: &TaskFile) -> Limits {
    let rank_timeout = Duration::from_secs(task.rank_timeout_seconds);
    let leave = task.grace_seconds.map_or(rank_timeout, |grace| {
        let grace = Duration::from_secs(grace.into());
        grace - FINAL_WORDS.min(grace / 2)
    });
    Limits { rank_timeout, settle: Duration::from_secs(1), save: rank_timeout.max(leave), leave }
}

/// The name of pod 0 may not be known yet.
async fn find_own_address(ctx: &StepContext) -> StepResult<std::net::IpAddr> {
    let until = Instant::now() + timeout(ctx);
    loop {
        match own_address(&ctx.task) {
            Err(error) if Instant::now() < until => ctx.progress.waiting(Some(error.to_string())),
            found => {
                ctx.progress.waiting(None);
                return found;
            }
        }
        tokio::select! {
            () = ctx.stop.cancelled() => return Err(StepError::Stopped),
            () = tokio::time::sleep(5 * BEAT) => {}
        }
    }
}

/// Starts the coordinator: served to the other pods, its work in storage done by a task.
async fn coordinate(ctx: &StepContext) -> StepResult<Shared> {
    let settings = Settings {
        pods: ctx.task.workers,
        ranks_per_pod: ctx.task.ranks_per_node,
        backoff_limit: ctx.task.backoff_limit,
        join_timeout: timeout(ctx),
        silence: SILENCE,
    };
    let coordinator = Shared::new(Coordinator::new(settings, Instant::now()));
    if ctx.task.workers > 1 {
        serve(coordinator.clone(), Party::of(&ctx.task), ctx.task.ports.rendezvous).await?;
    }
    let (ctx, shared) = (ctx.clone(), coordinator.clone());
    tokio::spawn(async move {
        let mut last = 0;
        loop {
            tokio::time::sleep(BEAT / 4).await;
            let task = {
                let mut coordinator = shared.lock();
                coordinator.tick(Instant::now());
                if let Some(activity) = coordinator.activity() {
                    ctx.progress.activity(activity);
                }
                coordinator.task()
            };
            if let Some(task) = task
                && let Err(error) = perform(&ctx, &shared, task, &mut last).await
            {
                shared.lock().end(Exit::of_error(&error));
            }
        }
    });
    Ok(coordinator)
}

async fn perform(ctx: &StepContext, shared: &Shared, task: Task, last: &mut u64) -> StepResult {
    match task {
        Task::Judge => {
            let newest = newest_checkpoint(&ctx.store).await?;
            shared.lock().judged(Instant::now(), newest);
        }
        Task::Claim => {
            let claimed = claim(ctx, *last).await?;
            *last = claimed.generation;
            shared.lock().claimed(Instant::now(), claimed.generation, claimed.token, claimed.resume);
        }
        Task::Finish => {
            commit_end(ctx).await?;
            shared.lock().finished();
        }
    }
    Ok(())
}

struct Agent<'a> {
    ctx: &'a StepContext,
    command: RankCommand,
    host: std::net::IpAddr,
    supervisor: Supervisor,
    ranks: Ranks,
    listeners: Vec<std::net::TcpListener>,
    events: mpsc::UnboundedSender<RankEvent>,
    heard: mpsc::UnboundedReceiver<RankEvent>,
}

impl<'a> Agent<'a> {
    fn new(ctx: &'a StepContext, command: RankCommand, host: std::net::IpAddr) -> Self {
        let ranks = ctx.task.ranks_per_node as usize;
        let supervisor = Supervisor::new(ctx.index as usize * ranks, ranks, limits(&ctx.task));
        let (events, heard) = mpsc::unbounded_channel();
        Self { ctx, command, host, supervisor, ranks: Ranks::default(), listeners: Vec::new(), events, heard }
    }

    async fn drive(mut self, way: Way) -> StepResult {
        let shared = match &way {
            Way::Here(shared) => Some(shared.clone()),
            Way::There(_) => None,
        };
        self.listen()?;
        let (say, to_say) = watch::channel(self.report());
        let (answer, mut answers) = mpsc::channel(1);
        let syncing = tokio::spawn(keep_in_sync(way, to_say, answer));
        let mut beat = tokio::time::interval(BEAT);
        let mut contact = Instant::now();
        let mut stopped = false;
        let exit = loop {
            let event = tokio::select! {
                Some(event) = self.heard.recv() => self.translate(event),
                Some(answer) = answers.recv() => match answer {
                    Ok((sent, order)) => {
                        contact = Instant::now();
                        Some(Event::Answered { sent, order })
                    }
                    Err(why) => self.without_coordinator(contact, &why).await?,
                },
                () = self.ctx.stop.cancelled(), if !stopped => {
                    stopped = true;
                    Some(Event::Stop)
                }
                _ = beat.tick() => Some(Event::Tick),
            };
            let actions = event.map(|event| self.supervisor.on(Instant::now(), event)).unwrap_or_default();
            if let Some(exit) = self.act(actions)? {
                break exit;
            }
            say.send_if_modified(|said| {
                let report = self.report();
                let changed = *said != report;
                *said = report;
                changed
            });
        };
        if let Some(shared) = shared {
            farewell(&shared).await;
        }
        syncing.abort();
        tracing::info!(?exit, "the agent ends");
        exit.into_result()
    }

    fn report(&self) -> PodReport {
        PodReport {
            index: self.ctx.index,
            pod_uid: self.ctx.pod_uid.clone(),
            state: self.supervisor.state(),
            leaving: self.supervisor.leaving(),
        }
    }

    fn act(&mut self, actions: Vec<Action>) -> StepResult<Option<Exit>> {
        for action in actions {
            match action {
                Action::Listen => self.listen()?,
                Action::Start(gang) => {
                    let listeners = std::mem::take(&mut self.listeners);
                    let first = (self.ctx.index * self.ctx.task.ranks_per_node) as usize;
                    self.ranks = Ranks::start(&self.command, &gang, first, listeners, &self.events)?;
                    self.ctx.progress.update(|report| report.gang_generation = gang.generation);
                    self.ctx.termination.write(|message| message.generation = gang.generation)?;
                }
                Action::Signal { rank, signal } => self.ranks.signal(rank, signal),
                Action::Exit(exit) => return Ok(Some(exit)),
            }
        }
        Ok(None)
    }

    fn listen(&mut self) -> StepResult {
        self.listeners = listen(self.host, self.ctx.task.ranks_per_node)?;
        let addresses = self.listeners.iter().map(|l| l.local_addr().map(|a| a.to_string()));
        let addresses = addresses.collect::<Result<_, _>>().context("address of a listener")?;
        self.supervisor.listening(addresses);
        Ok(())
    }

    fn translate(&self, event: RankEvent) -> Option<Event> {
        let (rank, report) = match event {
            RankEvent::Exited { rank, ending } => return Some(Event::Exited { rank, ending }),
            RankEvent::Told { rank, report } => (rank, report),
        };
        match *report {
            Report::Progress(report) => {
                let event = Event::Progress { rank, activity: report.activity.clone(), count: report.count };
                // The first rank speaks for the pod.
                if rank == 0 {
                    self.ctx.progress.update(|ours| *ours = report);
                }
                Some(event)
            }
            Report::Committed(committed) => {
                self.committed(&committed.key, committed.step);
                None
            }
            Report::Ended(ended) => {
                Some(Event::Ended { rank, reason: ended.reason.parse().ok(), message: ended.message })
            }
        }
    }

    fn committed(&self, key: &str, step: u64) {
        tracing::info!(key, step, "committed");
        let uri = self.ctx.store.uri_of(key);
        let now = std::time::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_secs());
        let checkpoint = self.ctx.task.stage_of_step(step).map(|stage| {
            CheckpointStatus::new(&stage.name, step, uri, i64::try_from(now).unwrap_or(i64::MAX))
        });
        let written = self.ctx.termination.write(|message| {
            message.committed = message.committed.max(step);
            message.checkpoint = checkpoint;
        });
        if let Err(error) = written {
            tracing::warn!(%error, "the termination message cannot be written");
        }
    }

    /// The coordinator does not answer: it may have ended with all work done, or be replaced.
    async fn without_coordinator(&self, contact: Instant, why: &str) -> StepResult<Option<Event>> {
        let silent = contact.elapsed();
        if silent < SILENCE {
            return Ok(None);
        }
        let running = matches!(self.supervisor.state(), PodState::Running { .. });
        if !running && has_ended(self.ctx).await? {
            return Ok(Some(Event::Answered {
                sent: self.supervisor.state(),
                order: Order::Exit(Exit::new(longstrap_crds::ExitCode::Committed, "")),
            }));
        }
        if !running && silent > timeout(self.ctx).max(SILENCE) {
            let message = format!("{why}; waited {} s for it", silent.as_secs());
            return Err(StepError::Failed(anyhow::Error::msg(message)));
        }
        Ok(Some(Event::Lost))
    }
}

/// One call after the other, each with the newest report: at once when it changes, else in
/// every beat.
async fn keep_in_sync(
    mut way: Way,
    mut to_say: watch::Receiver<PodReport>,
    answer: mpsc::Sender<Result<(PodState, Order), String>>,
) {
    loop {
        let report = to_say.borrow_and_update().clone();
        let sent = report.state.clone();
        let result = way.sync(report).await.map(|order| (sent, order));
        if answer.send(result).await.is_err() {
            return;
        }
        tokio::select! {
            changed = to_say.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(BEAT) => {}
        }
    }
}

/// Waits until the other pods have heard of the end.
async fn farewell(shared: &Shared) {
    let until = Instant::now() + FAREWELL;
    while Instant::now() < until && !shared.lock().all_told() {
        tokio::time::sleep(BEAT / 4).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_save_for_as_long_as_the_pod_lives_but_the_agents_last_words() {
        for (rank_timeout, grace, leave, save) in [
            (600, None, 600, 600),
            (600, Some(120), 105, 600),
            (600, Some(3600), 3585, 3585),
            (600, Some(20), 10, 600),
            (600, Some(0), 0, 600),
        ] {
            let task = serde_json::json!({
                "formatVersion": 1, "attempt": 1, "step": "train-0",
                "owner": {"cluster": "c", "namespace": "n", "name": "x", "uid": "u"},
                "spec": {"contextExtensionRun": {
                    "storage": {"uri": "file:///s"}, "model": {"uri": "file:///m"}, "data": [], "stages": [],
                }},
                "workers": 1, "ranksPerNode": 1, "threadsPerRank": 1, "backoffLimit": 1,
                "rankTimeoutSeconds": rank_timeout, "outageTimeoutSeconds": 1,
                "rendezvousHost": "", "ports": {"rendezvous": 0, "progress": 0}, "graceSeconds": grace,
            });
            let limits = limits(&TaskFile::from_json(&task.to_string()).unwrap());
            assert_eq!((limits.leave.as_secs(), limits.save.as_secs()), (leave, save), "{grace:?}");
        }
    }
}
