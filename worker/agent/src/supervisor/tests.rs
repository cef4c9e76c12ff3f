//! Tables: what happens to a pod of ranks 2 and 3, and what the agent does.

use super::*;

struct Table {
    supervisor: Supervisor,
    start: Instant,
    millis: u64,
}

impl Table {
    /// Listening, then started as generation 5.
    fn running() -> Self {
        let limits = Limits {
            rank_timeout: Duration::from_secs(60),
            settle: Duration::from_secs(1),
            save: Duration::from_secs(30),
            leave: Duration::from_secs(20),
        };
        let mut table = Self { supervisor: Supervisor::new(2, 2, limits), start: Instant::now(), millis: 0 };
        table.supervisor.listening(vec!["a:1".into(), "a:2".into()]);
        assert_eq!(table.answer(start(5)), ["start 5"]);
        table
    }

    fn wait(&mut self, millis: u64) -> Vec<String> {
        self.millis += millis;
        self.on(Event::Tick)
    }

    fn on(&mut self, event: Event) -> Vec<String> {
        let now = self.start + Duration::from_millis(self.millis);
        let word = |action| match action {
            Action::Listen => "listen".into(),
            Action::Start(gang) => format!("start {}", gang.generation),
            Action::Signal { rank, signal } => format!("{signal:?} {rank}"),
            Action::Exit(exit) => format!("exit {}", exit.code.code()),
        };
        self.supervisor.on(now, event).into_iter().map(word).collect()
    }

    fn answer(&mut self, order: Order) -> Vec<String> {
        let sent = self.supervisor.state();
        self.on(Event::Answered { sent, order })
    }

    fn exit(&mut self, rank: usize, ending: Ending) -> Vec<String> {
        self.on(Event::Exited { rank, ending })
    }

    fn progress(&mut self, rank: usize, count: u64) {
        let activity = format!("step {count}");
        assert_eq!(self.on(Event::Progress { rank, activity, count }), [""; 0]);
    }

    fn outcome(&self) -> Outcome {
        match self.supervisor.state() {
            PodState::Stopped { generation: 5, outcome } => outcome,
            other => panic!("{other:?}"),
        }
    }
}

fn start(generation: u64) -> Order {
    Order::Start(Gang { generation, peers: Vec::new(), token: String::new(), resume: None })
}

const NOTHING: [&str; 0] = [];

#[test]
fn how_ranks_end_is_what_the_pod_says() {
    use Ending::{Code, Signal};
    let failed = |message: &str| Outcome::Failed(message.into());
    let hopeless = |code, reason, message: &str| {
        Outcome::Hopeless(Exit { code, reason: Some(reason), message: message.into() })
    };
    // What each of the two ranks does, the first one first; what the pod says.
    for (first, second, outcome) in [
        (Code(0), Code(0), Outcome::Done),
        (Code(1), Code(0), failed("rank 2 exited with 1")),
        (Code(0), Code(134), failed("rank 3 exited with 134")),
        (
            Signal(9),
            Signal(6),
            failed("rank 2 was killed (SIGKILL; out of memory?); rank 3 was killed by signal 6"),
        ),
        (Code(1), Signal(11), failed("rank 3 was killed by signal 11; rank 2 exited with 1")),
        (Code(11), Code(0), failed("rank 2 stopped without being told")),
        // The cause counts, not who fell first.
        (Code(1), Code(10), hopeless(ExitCode::Invalid, Reason::DoesNotFit, "rank 3: too large")),
        (Code(12), Code(1), hopeless(ExitCode::Outage, Reason::StorageUnavailable, "rank 2: away")),
    ] {
        let mut table = Table::running();
        for (rank, ending) in [first, second].into_iter().enumerate() {
            let told = match ending {
                Code(10) => Some((Reason::DoesNotFit, "too large")),
                Code(12) => Some((Reason::StorageUnavailable, "away")),
                _ => None,
            };
            if let Some((reason, message)) = told {
                let (reason, message) = (Some(reason), message.to_owned());
                assert_eq!(table.on(Event::Ended { rank, reason, message }), NOTHING);
            }
            table.exit(rank, ending);
        }
        assert_eq!(table.outcome(), outcome, "{first:?} {second:?}");
    }
    // Exit 10 without a word helps nobody: a crash.
    let mut table = Table::running();
    table.exit(0, Code(10));
    table.exit(1, Code(1));
    assert_eq!(table.outcome(), failed("rank 2: exited without a reason"));
}

#[test]
fn after_a_failure_the_others_may_speak_and_are_killed() {
    let mut table = Table::running();
    assert_eq!(table.exit(1, Ending::Code(1)), NOTHING);
    assert_eq!(table.wait(900), NOTHING);
    assert_eq!(table.wait(200), ["Kill 0"]);
    assert_eq!(table.wait(200), NOTHING, "once");
    assert_eq!(table.supervisor.state(), PodState::Running { generation: 5 }, "not gone yet");
    table.exit(0, Ending::Signal(9));
    assert_eq!(table.outcome(), Outcome::Failed("rank 3 exited with 1".into()));
    // Only when the coordinator has heard that does the pod join again, and never an old gang.
    let stale = Event::Answered { sent: PodState::Running { generation: 5 }, order: Order::Wait };
    assert_eq!(table.on(stale), NOTHING);
    assert_eq!(table.answer(Order::Wait), ["listen"]);
    table.supervisor.listening(vec!["a:3".into(), "a:4".into()]);
    assert_eq!(table.answer(start(5)), NOTHING);
    assert_eq!(table.answer(start(6)), ["start 6"]);
}

#[test]
fn told_to_stop_the_ranks_save_and_the_agent_exits_11() {
    let mut table = Table::running();
    assert_eq!(table.on(Event::Stop), ["Terminate 0", "Terminate 1"]);
    assert!(table.supervisor.leaving());
    assert_eq!(table.answer(Order::Stop { generation: 5, save: true }), NOTHING, "they know");
    assert_eq!(table.exit(0, Ending::Code(11)), NOTHING);
    assert_eq!(table.wait(19_000), NOTHING);
    assert_eq!(table.wait(1_000), ["Kill 1"]);
    assert_eq!(table.exit(1, Ending::Signal(9)), ["exit 11"]);

    // Without ranks there is nothing to save.
    let mut table = Table::running();
    table.exit(0, Ending::Code(0));
    table.exit(1, Ending::Code(0));
    assert_eq!(table.on(Event::Stop), ["exit 11"]);
}

#[test]
fn who_is_not_killed_may_save_for_longer() {
    let save = || Order::Stop { generation: 5, save: true };
    let mut table = Table::running();
    assert_eq!(table.answer(save()), ["Terminate 0", "Terminate 1"], "another pod leaves");
    assert_eq!(table.wait(29_000), NOTHING);
    assert_eq!(table.answer(save()), NOTHING);
    assert_eq!(table.wait(1_000), ["Kill 0", "Kill 1"]);

    // The order comes first, then its own SIGTERM: what is less counts.
    for (between, left) in [(5_000, 20_000), (25_000, 5_000)] {
        let mut table = Table::running();
        table.answer(save());
        assert_eq!(table.wait(between), NOTHING);
        assert_eq!(table.on(Event::Stop), NOTHING, "they know");
        assert_eq!(table.wait(left - 1_000), NOTHING);
        assert_eq!(table.wait(1_000), ["Kill 0", "Kill 1"], "{between}");
    }
}

#[test]
fn orders_to_stop() {
    let stop = |generation, save| Order::Stop { generation, save };
    let mut table = Table::running();
    assert_eq!(table.answer(stop(4, false)), NOTHING, "of another gang");
    assert_eq!(table.answer(stop(5, true)), ["Terminate 0", "Terminate 1"]);
    assert_eq!(table.answer(stop(5, false)), ["Kill 0", "Kill 1"], "no time left to save");
    assert_eq!(table.answer(stop(5, false)), NOTHING, "once");
    table.exit(0, Ending::Code(11));
    table.exit(1, Ending::Signal(9));
    assert_eq!(table.outcome(), Outcome::Stopped);

    let mut table = Table::running();
    assert_eq!(table.on(Event::Lost), ["Kill 0", "Kill 1"]);
    let exit = || Order::Exit(Exit::new(ExitCode::Exhausted, ""));
    assert_eq!(table.answer(exit()), NOTHING, "not with ranks alive");
    table.exit(0, Ending::Signal(9));
    table.exit(1, Ending::Signal(9));
    assert_eq!(table.answer(exit()), ["exit 13"]);
}

#[test]
fn a_rank_without_progress_is_killed() {
    // Never a word.
    let mut table = Table::running();
    for _ in 0..5 {
        table.progress(0, 0);
        assert_eq!(table.wait(10_000), NOTHING);
    }
    table.progress(0, 0);
    assert_eq!(table.wait(10_000), ["Kill 0", "Kill 1"]);
    table.exit(0, Ending::Signal(9));
    table.exit(1, Ending::Signal(9));
    assert_eq!(table.outcome(), Outcome::Failed("rank 3 said nothing since its start 60 s ago".into()));

    // Who waits for it is silent as well, and not to blame.
    let mut table = Table::running();
    assert_eq!(table.wait(100), NOTHING);
    table.on(Event::Progress { rank: 0, activity: "waiting for the other ranks".into(), count: 0 });
    assert_eq!(table.wait(59_800), NOTHING);
    assert_eq!(table.wait(200), ["Kill 0", "Kill 1"]);
    table.exit(0, Ending::Signal(9));
    table.exit(1, Ending::Signal(9));
    assert_eq!(table.outcome(), Outcome::Failed("rank 3 said nothing since its start 60 s ago".into()));

    // Slow steps allow more: ten times their median.
    let mut table = Table::running();
    for count in 1..=6 {
        for rank in [0, 1] {
            table.progress(rank, count);
        }
        assert_eq!(table.wait(20_000), NOTHING);
    }
    assert_eq!(table.wait(170_000), NOTHING, "190 s of 10 × 20 s");
    table.progress(1, 6);
    assert_eq!(table.wait(10_000), ["Kill 0", "Kill 1"]);
    table.exit(0, Ending::Signal(9));
    table.exit(1, Ending::Signal(9));
    let Outcome::Failed(message) = table.outcome() else { panic!() };
    assert_eq!(message, "rank 2 made no progress for 200 s (limit 200 s); its last words: step 6");
}
