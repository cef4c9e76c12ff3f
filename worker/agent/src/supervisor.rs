//! The ranks of one pod. Pure: events and time in, actions out.
//!
//! Invariant: a generation that was started once is never started again, and the pod says that
//! a generation is gone only when every process of it has ended.

use std::collections::VecDeque;
use std::time::Duration;

use longstrap_crds::{ExitCode, Reason};
use tokio::time::Instant;

use crate::message::{Exit, Gang, Order, Outcome, PodState};

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    Code(i32),
    Signal(i32),
}

/// What happens to a pod.
#[derive(Debug, Clone)]
pub(crate) enum Event {
    /// The coordinator answered the state that was sent.
    Answered { sent: PodState, order: Order },
    /// A rank told something; `count` is finished steps.
    Progress { rank: usize, activity: String, count: u64 },
    /// A rank told why it is about to end.
    Ended { rank: usize, reason: Option<Reason>, message: String },
    /// A process is gone.
    Exited { rank: usize, ending: Ending },
    /// The agent got SIGTERM.
    Stop,
    /// The coordinator has not answered for too long.
    Lost,
    /// Time passes.
    Tick,
}

/// Which signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Signal {
    /// Save, then exit.
    Terminate,
    Kill,
}

/// What the agent shall do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Action {
    /// Open listeners, then tell their addresses by [`Supervisor::listening`].
    Listen,
    /// Start the ranks of this gang.
    Start(Gang),
    /// Signal a rank of this pod.
    Signal { rank: usize, signal: Signal },
    /// End the agent.
    Exit(Exit),
}

/// Times that the supervisor keeps.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// A rank without progress for the larger of this and ten median steps hangs.
    pub(crate) rank_timeout: Duration,
    /// After a rank's failure the others may end by themselves for this long, so that a rank
    /// that knows the cause can say it.
    pub(crate) settle: Duration,
    /// Ranks that were asked to save are killed after this long: nobody kills the pod.
    pub(crate) save: Duration,
    /// The same after SIGTERM, when the pod itself is killed a little later.
    pub(crate) leave: Duration,
}

struct Rank {
    /// Its number in the gang, for messages.
    number: usize,
    ending: Option<Ending>,
    /// By us: then its end says nothing.
    killed: bool,
    told: Option<(Option<Reason>, String)>,
    progress: Instant,
    activity: String,
    count: u64,
    counted: Instant,
    steps: VecDeque<Duration>,
}

struct Stopping {
    /// Ranks that still run are killed then.
    kill_at: Instant,
    killed: bool,
    why: Why,
}

enum Why {
    /// By order or signal.
    Told,
    /// A rank ended, as its ending says.
    Ended,
    /// A rank hangs, in words.
    Hangs(String),
}

enum State {
    Joining { addresses: Vec<String> },
    Running { generation: u64, ranks: Vec<Rank>, stopping: Option<Stopping> },
    Stopped { generation: u64, outcome: Outcome },
}

/// See the module.
pub(crate) struct Supervisor {
    first_rank: usize,
    ranks: usize,
    limits: Limits,
    state: State,
    /// Highest generation that was started.
    last: u64,
    leaving: bool,
}

impl Supervisor {
    /// Of a pod with `ranks` processes, the first being `first_rank` of the gang. Listen first.
    pub(crate) fn new(first_rank: usize, ranks: usize, limits: Limits) -> Self {
        let state = State::Joining { addresses: Vec::new() };
        Self { first_rank, ranks, limits, state, last: 0, leaving: false }
    }

    /// Listeners are open.
    pub(crate) fn listening(&mut self, addresses: Vec<String>) {
        self.state = State::Joining { addresses };
    }

    /// What to tell the coordinator.
    pub(crate) fn state(&self) -> PodState {
        match &self.state {
            State::Joining { addresses } => PodState::Joining { addresses: addresses.clone() },
            State::Running { generation, .. } => PodState::Running { generation: *generation },
            State::Stopped { generation, outcome } => {
                PodState::Stopped { generation: *generation, outcome: outcome.clone() }
            }
        }
    }

    /// Whether the pod was told to stop.
    pub(crate) fn leaving(&self) -> bool {
        self.leaving
    }

    pub(crate) fn on(&mut self, now: Instant, event: Event) -> Vec<Action> {
        match event {
            Event::Answered { sent, order } => self.obey(now, &sent, order),
            Event::Progress { rank, activity, count } => {
                self.progress(now, rank, activity, count);
                Vec::new()
            }
            Event::Ended { rank, reason, message } => {
                if let State::Running { ranks, .. } = &mut self.state {
                    ranks[rank].told = Some((reason, message));
                }
                Vec::new()
            }
            Event::Exited { rank, ending } => self.exited(now, rank, ending),
            Event::Stop => {
                self.leaving = true;
                match &self.state {
                    State::Running { .. } => self.stop(now, true),
                    _ => vec![Action::Exit(Exit::new(ExitCode::Stopped, "told to stop"))],
                }
            }
            Event::Lost => self.stop(now, false),
            Event::Tick => self.tick(now),
        }
    }

    fn obey(&mut self, now: Instant, sent: &PodState, order: Order) -> Vec<Action> {
        let current = *sent == self.state();
        match (order, &self.state) {
            (Order::Exit(exit), State::Joining { .. } | State::Stopped { .. }) => vec![Action::Exit(exit)],
            (Order::Exit(_), State::Running { .. }) => self.stop(now, false),
            (Order::Start(gang), State::Joining { .. }) if current && gang.generation > self.last => {
                self.start(now, gang)
            }
            (Order::Stop { generation, save }, State::Running { generation: ours, .. })
                if generation == *ours =>
            {
                self.stop(now, save)
            }
            // The coordinator knows how it ended.
            (_, State::Stopped { .. }) if current => {
                self.state = State::Joining { addresses: Vec::new() };
                vec![Action::Listen]
            }
            _ => Vec::new(),
        }
    }

    fn start(&mut self, now: Instant, gang: Gang) -> Vec<Action> {
        let rank = |i| Rank {
            number: self.first_rank + i,
            ending: None,
            killed: false,
            told: None,
            progress: now,
            activity: String::new(),
            count: 0,
            counted: now,
            steps: VecDeque::new(),
        };
        self.last = gang.generation;
        let ranks = (0..self.ranks).map(rank).collect();
        self.state = State::Running { generation: gang.generation, ranks, stopping: None };
        vec![Action::Start(gang)]
    }

    /// Stops the ranks that still run, with the chance to save or without.
    fn stop(&mut self, now: Instant, save: bool) -> Vec<Action> {
        let State::Running { ranks, stopping, .. } = &mut self.state else { return Vec::new() };
        let signal = if save { Signal::Terminate } else { Signal::Kill };
        let kill_at = now + if self.leaving { self.limits.leave } else { self.limits.save };
        match stopping {
            Some(earlier) if save || earlier.killed => {
                earlier.kill_at = earlier.kill_at.min(kill_at);
                return Vec::new();
            }
            Some(earlier) => earlier.killed = true,
            None => {
                *stopping = Some(Stopping { kill_at, killed: !save, why: Why::Told });
            }
        }
        signal_all(ranks, signal)
    }

    fn exited(&mut self, now: Instant, rank: usize, ending: Ending) -> Vec<Action> {
        let State::Running { ranks, stopping, generation } = &mut self.state else { return Vec::new() };
        ranks[rank].ending = Some(ending);
        if ranks.iter().all(|rank| rank.ending.is_some()) {
            let outcome = outcome(ranks, stopping.as_ref());
            let generation = *generation;
            tracing::info!(generation, ?outcome, "all ranks of this pod have ended");
            self.state = State::Stopped { generation, outcome };
            return match self.leaving {
                true => vec![Action::Exit(Exit::new(ExitCode::Stopped, "told to stop"))],
                false => Vec::new(),
            };
        }
        if stopping.is_some() || ending == Ending::Code(0) {
            return Vec::new();
        }
        // Ctrl-C reaches every process of a terminal, a rank maybe before the agent: then the
        // others are saving.
        let (patience, actions) = match is_stop(ending) {
            true => (self.limits.save, signal_all(ranks, Signal::Terminate)),
            false => (self.limits.settle, Vec::new()),
        };
        *stopping = Some(Stopping { kill_at: now + patience, killed: false, why: Why::Ended });
        actions
    }

    fn progress(&mut self, now: Instant, rank: usize, activity: String, count: u64) {
        /// Steps that the median is taken over.
        const STEPS: usize = 31;
        let State::Running { ranks, .. } = &mut self.state else { return };
        let rank = &mut ranks[rank];
        rank.progress = now;
        rank.activity = activity;
        if count > rank.count {
            // The time until the first count is start-up, not a step.
            if rank.count > 0 {
                rank.steps.push_back(now.duration_since(rank.counted));
                if rank.steps.len() > STEPS {
                    rank.steps.pop_front();
                }
            }
            rank.count = count;
            rank.counted = now;
        }
    }

    fn tick(&mut self, now: Instant) -> Vec<Action> {
        let State::Running { ranks, stopping, .. } = &mut self.state else { return Vec::new() };
        if let Some(stopping) = stopping {
            if stopping.killed || now < stopping.kill_at {
                return Vec::new();
            }
            stopping.killed = true;
            return signal_all(ranks, Signal::Kill);
        }
        let least = self.limits.rank_timeout;
        let overdue = |rank: &&Rank| rank.ending.is_none() && rank.silent(now) >= rank.limit(least);
        // Ranks that wait for one that hangs, or never came, fall silent after it.
        let hanging = ranks.iter().filter(overdue).min_by_key(|rank| rank.progress);
        match hanging.map(|rank| rank.hangs(now, least)) {
            None => Vec::new(),
            Some(words) => {
                *stopping = Some(Stopping { kill_at: now, killed: true, why: Why::Hangs(words) });
                signal_all(ranks, Signal::Kill)
            }
        }
    }
}

impl Rank {
    fn silent(&self, now: Instant) -> Duration {
        now.duration_since(self.progress)
    }

    /// Silence that is too long.
    fn limit(&self, least: Duration) -> Duration {
        self.median_step().map_or(least, |median| least.max(median * 10))
    }

    /// Says that it hangs.
    fn hangs(&self, now: Instant, least: Duration) -> String {
        let (number, silent) = (self.number, self.silent(now).as_secs());
        match self.activity.as_str() {
            "" => format!("rank {number} said nothing since its start {silent} s ago"),
            last => format!(
                "rank {number} made no progress for {silent} s (limit {} s); its last words: {last}",
                self.limit(least).as_secs()
            ),
        }
    }

    fn median_step(&self) -> Option<Duration> {
        let mut steps: Vec<_> = self.steps.iter().copied().collect();
        steps.sort();
        steps.get(steps.len() / 2).copied()
    }
}

fn signal_all(ranks: &mut [Rank], signal: Signal) -> Vec<Action> {
    let running = ranks.iter_mut().enumerate().filter(|(_, rank)| rank.ending.is_none());
    let signalled = running.map(|(i, rank)| {
        rank.killed |= signal == Signal::Kill;
        Action::Signal { rank: i, signal }
    });
    signalled.collect()
}

/// Exit 11, or SIGTERM before the rank's handler was there.
fn is_stop(ending: Ending) -> bool {
    matches!(ending, Ending::Code(11 | 143) | Ending::Signal(15 | 2))
}

fn outcome(ranks: &[Rank], stopping: Option<&Stopping>) -> Outcome {
    if ranks.iter().all(|rank| rank.ending == Some(Ending::Code(0))) {
        return Outcome::Done;
    }
    for code in [ExitCode::Invalid, ExitCode::Outage] {
        let knows = |rank: &&Rank| rank.ending == Some(Ending::Code(code.code()));
        if let Some(rank) = ranks.iter().find(knows) {
            let (reason, message) = rank.told.clone().unwrap_or_default();
            let message = format!("rank {}: {message}", rank.number);
            // Without a reason nobody could tell what to mend: a crash.
            return match reason {
                Some(_) => Outcome::Hopeless(Exit { code, reason, message }),
                None => Outcome::Failed(message + "exited without a reason"),
            };
        }
    }
    match stopping.map(|stopping| &stopping.why) {
        Some(Why::Told) => Outcome::Stopped,
        Some(Why::Hangs(words)) => Outcome::Failed(words.clone()),
        // A rank that fell over its peer's death often ends first, so all are told; a signal is
        // never a consequence.
        Some(Why::Ended) | None => {
            let mut ended: Vec<_> = ranks.iter().filter(|rank| !rank.killed).collect();
            ended.sort_by_key(|rank| !matches!(rank.ending, Some(Ending::Signal(_))));
            let words = ended.iter().filter_map(|rank| match rank.ending? {
                Ending::Code(0) => None,
                ending => Some(describe(rank, ending)),
            });
            Outcome::Failed(words.collect::<Vec<_>>().join("; "))
        }
    }
}

fn describe(rank: &Rank, ending: Ending) -> String {
    let how = match ending {
        ending if is_stop(ending) => "stopped without being told".to_owned(),
        Ending::Code(code) => format!("exited with {code}"),
        Ending::Signal(9) => "was killed (SIGKILL; out of memory?)".to_owned(),
        Ending::Signal(signal) => format!("was killed by signal {signal}"),
    };
    match &rank.told {
        Some((_, message)) => format!("rank {} {how}: {message}", rank.number),
        None => format!("rank {} {how}", rank.number),
    }
}

#[cfg(test)]
mod tests;
