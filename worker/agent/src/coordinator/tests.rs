//! Tables: what two pods of two ranks each say, and what they are told.

use super::*;

const BACKOFF_LIMIT: u32 = 2;

struct Table {
    coordinator: Coordinator,
    start: Instant,
    seconds: u64,
}

impl Table {
    fn new() -> Self {
        let settings = Settings {
            pods: 2,
            ranks_per_pod: 2,
            backoff_limit: BACKOFF_LIMIT,
            join_timeout: Duration::from_secs(100),
            silence: Duration::from_secs(20),
        };
        let start = Instant::now();
        Self { coordinator: Coordinator::new(settings, start), start, seconds: 0 }
    }

    fn now(&self) -> Instant {
        self.start + Duration::from_secs(self.seconds)
    }

    fn wait(&mut self, seconds: u64) {
        self.seconds += seconds;
        let now = self.now();
        self.coordinator.tick(now);
    }

    /// What pod `index` says in `state`; letters: see [`state`]. Returns the order as a word.
    fn say(&mut self, index: u32, text: &str) -> String {
        let (uid, leaving) = (format!("uid-{index}"), false);
        self.report(PodReport { index, pod_uid: uid, state: state(index, text), leaving })
    }

    fn report(&mut self, report: PodReport) -> String {
        let now = self.now();
        match self.coordinator.report(now, report) {
            Err(refused) => format!("refused: {refused}"),
            Ok(Order::Wait) => "wait".into(),
            Ok(Order::Start(gang)) => {
                assert_eq!(gang.peers.len(), 4);
                format!("start {} {}", gang.generation, gang.resume.unwrap_or_default())
            }
            Ok(Order::Stop { generation, save }) => {
                format!("stop {generation}{}", if save { " save" } else { "" })
            }
            Ok(Order::Exit(exit)) => format!("exit {} {}", exit.code.code(), exit.message),
        }
    }

    fn claim(&mut self, generation: u64, resume: Option<(u64, u64)>) {
        assert_eq!(self.coordinator.task(), Some(Task::Claim));
        let now = self.now();
        self.coordinator.claimed(now, generation, "token".into(), resume.map(checkpoint));
    }

    fn judge(&mut self, newest: Option<(u64, u64)>) {
        assert_eq!(self.coordinator.task(), Some(Task::Judge));
        let now = self.now();
        self.coordinator.judged(now, newest.map(checkpoint));
    }

    /// Forms generation `n` from `resume` and starts its ranks.
    fn form(&mut self, n: u64, resume: Option<(u64, u64)>) {
        for pod in [0, 1] {
            assert_eq!(self.say(pod, &format!("joining {n}")), "wait");
        }
        self.claim(n, resume);
        for pod in [0, 1] {
            assert!(self.say(pod, &format!("joining {n}")).starts_with(&format!("start {n}")));
            assert_eq!(self.say(pod, &format!("running {n}")), "wait");
        }
    }
}

fn checkpoint((generation, step): (u64, u64)) -> CheckpointId {
    CheckpointId { generation, step }
}

/// `joining N`, `running N`, `done N`, `stopped N`, `failed N`, `invalid N`, `outage N`.
fn state(index: u32, text: &str) -> PodState {
    let (word, n) = text.split_once(' ').unwrap();
    let generation = n.parse().unwrap();
    let hopeless = |code, reason| {
        Outcome::Hopeless(Exit { code, reason: Some(reason), message: format!("pod {index} says {word}") })
    };
    let outcome = match word {
        "joining" => {
            let address = |rank| format!("pod-{index}:{n}{rank}");
            return PodState::Joining { addresses: [0, 1].map(address).into() };
        }
        "running" => return PodState::Running { generation },
        "done" => Outcome::Done,
        "stopped" => Outcome::Stopped,
        "failed" => Outcome::Failed(format!("rank {} exited with 1", index * 2)),
        "invalid" => hopeless(ExitCode::Invalid, Reason::DoesNotFit),
        "outage" => hopeless(ExitCode::Outage, Reason::StorageUnavailable),
        _ => panic!("{word}"),
    };
    PodState::Stopped { generation, outcome }
}

#[test]
fn a_gang_forms_runs_and_ends_once() {
    let mut table = Table::new();
    assert_eq!(table.say(0, "joining 1"), "wait");
    assert_eq!(table.coordinator.activity().unwrap(), "waiting for pod 1 (ranks 2 to 3) to join");
    assert_eq!(table.coordinator.task(), None);
    table.form(1, Some((4, 7)));
    // The order of what is said, and saying it twice, change nothing.
    for (pod, says, order) in [
        (1, "done 1", "wait"),
        (1, "done 1", "wait"),
        (0, "running 1", "wait"),
        (1, "joining 2", "wait"),
        (0, "done 1", "wait"),
    ] {
        assert_eq!(table.coordinator.task(), None);
        assert_eq!(table.say(pod, says), order);
    }
    assert_eq!(table.coordinator.task(), Some(Task::Finish));
    table.coordinator.finished();
    assert!(!table.coordinator.all_told());
    assert_eq!(table.say(1, "joining 2"), "exit 0 ");
    assert!(table.coordinator.all_told());
}

#[test]
fn a_failure_anywhere_stops_all_and_forms_the_next_generation() {
    let mut table = Table::new();
    table.form(1, None);
    for (pod, says, order) in [
        (1, "failed 1", "wait"),
        (0, "running 1", "stop 1"),
        (1, "joining 2", "wait"),
        (0, "running 1", "stop 1"),
        (0, "stopped 1", "wait"),
    ] {
        assert_eq!(table.coordinator.task(), None, "not before all are gone");
        assert_eq!(table.say(pod, says), order, "{says}");
    }
    table.judge(Some((1, 3)));
    // What pod 1 said while the old gang was stopping is not enough to start it again.
    assert_eq!(table.say(0, "joining 2"), "wait");
    assert_eq!(table.coordinator.task(), None);
    table.form(2, Some((1, 3)));
}

#[test]
fn failures_without_a_newer_checkpoint_are_counted() {
    let fail = |table: &mut Table, n: u64, newest| {
        table.form(n, newest);
        table.say(0, &format!("failed {n}"));
        table.say(1, &format!("stopped {n}"));
    };
    let mut table = Table::new();
    fail(&mut table, 1, None);
    table.judge(None);
    fail(&mut table, 2, None);
    table.judge(Some((2, 1)));
    // That was progress: the count began anew. Two more are the limit.
    fail(&mut table, 3, Some((2, 1)));
    table.judge(Some((2, 1)));
    fail(&mut table, 4, Some((2, 1)));
    table.judge(Some((2, 1)));
    let exit = "exit 13 2 failures in a row without a new checkpoint (backoffLimit 2); the last: \
                pod 0: rank 0 exited with 1";
    assert_eq!(table.say(1, "joining 5"), exit);
}

#[test]
fn what_a_rank_knows_ends_the_gang() {
    // Crashes of its peers are consequences; a spec that cannot work beats an outage.
    for (first, second, exit) in [
        ("failed 1", "invalid 1", "exit 10 pod 1 says invalid"),
        ("outage 1", "failed 1", "exit 12 pod 0 says outage"),
        ("outage 1", "invalid 1", "exit 10 pod 1 says invalid"),
    ] {
        let mut table = Table::new();
        table.form(1, None);
        table.say(0, first);
        assert_eq!(table.say(1, second), exit);
    }
}

#[test]
fn pods_that_leave_or_are_lost_count_nothing() {
    let mut table = Table::new();
    table.form(1, None);
    // Told to stop: all save.
    let leaving = |state| PodReport { index: 1, pod_uid: "uid-1".into(), state, leaving: true };
    assert_eq!(table.report(leaving(state(1, "running 1"))), "stop 1 save");
    assert_eq!(table.say(0, "running 1"), "stop 1 save");
    assert_eq!(table.report(leaving(state(1, "stopped 1"))), "wait");
    assert_eq!(table.say(0, "stopped 1"), "wait");
    // Who is leaving is not taken in again; its successor is, and then it is refused.
    table.say(0, "joining 2");
    table.report(leaving(state(1, "joining 2")));
    assert_eq!(table.coordinator.task(), None);
    let successor =
        |text| PodReport { index: 1, pod_uid: "uid-new".into(), state: state(1, text), leaving: false };
    assert_eq!(table.report(successor("joining 9")), "wait");
    assert_eq!(table.report(leaving(state(1, "joining 2"))), "refused: another pod has index 1 now");
    table.claim(2, None);
    assert_eq!(table.report(successor("joining 9")), "start 2 ");
    assert_eq!(table.say(0, "joining 2"), "start 2 ");

    // An agent that has lost its ranks without a word (it was started again).
    assert_eq!(table.report(successor("running 2")), "wait");
    assert_eq!(table.report(successor("joining 10")), "wait");
    assert_eq!(table.say(0, "running 2"), "stop 2");
    assert_eq!(table.say(0, "stopped 2"), "wait");
    assert_eq!(table.say(0, "joining 3"), "wait");
    assert_eq!(table.report(successor("joining 10")), "wait");
    table.claim(3, None);
    assert_eq!(table.report(successor("joining 10")), "start 3 ");
    assert_eq!(table.say(0, "joining 3"), "start 3 ");
    assert_eq!(table.report(successor("running 3")), "wait");

    // Silence.
    table.wait(15);
    assert_eq!(table.say(0, "running 3"), "wait");
    table.wait(15);
    assert_eq!(table.say(0, "running 3"), "stop 3");
    assert_eq!(table.say(0, "stopped 3"), "wait");
    assert_eq!(table.coordinator.task(), None);
}

#[test]
fn a_pod_that_never_joins_is_named() {
    let mut table = Table::new();
    for _ in 0..9 {
        assert_eq!(table.say(0, "joining 1"), "wait");
        table.wait(11);
    }
    table.wait(1);
    let exit = "exit 1 pod 1 (ranks 2 to 3) never joined: waited 100 s; see the log of its pod";
    assert_eq!(table.say(0, "joining 1"), exit);
}

#[test]
fn strangers_and_ranks_of_another_coordinator_are_turned_away() {
    let mut table = Table::new();
    assert_eq!(table.say(2, "joining 1"), "refused: pod 2 is none of the 2 pods of this Job");
    // A new coordinator finds ranks that the old one started.
    assert_eq!(table.say(1, "running 7"), "stop 7");
    assert_eq!(table.say(1, "failed 7"), "wait");
    table.form(8, None);
}
