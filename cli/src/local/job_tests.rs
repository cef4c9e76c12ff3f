//! Each test drives the controller by hand: ends of pods and the time go in, actions and the
//! Job's status come out.

use serde_json::{Value, json};

use super::*;

struct Bench {
    controller: JobController,
    now: Timestamp,
    uids: u32,
}

impl Bench {
    fn new(spec: Value) -> Self {
        let mut full = json!({"completionMode": "Indexed", "completions": 2, "parallelism": 2,
            "backoffLimitPerIndex": 1000, "maxFailedIndexes": 0,
            "podFailurePolicy": {"rules": [
                {"action": "FailJob", "onExitCodes": {"containerName": "worker", "operator": "In", "values": [10, 13]}},
                {"action": "Ignore", "onExitCodes": {"containerName": "worker", "operator": "In", "values": [11, 12, 143]}}]},
            "template": {"spec": {"containers": [{"name": "worker"}]}}});
        for (key, value) in spec.as_object().unwrap() {
            full[key] = value.clone();
        }
        let job = serde_json::from_value(json!({"metadata": {"name": "j"}, "spec": full})).unwrap();
        let now = "2026-01-01T00:00:00Z".parse().unwrap();
        Self { controller: JobController::new(job, "job-uid".into(), now), now, uids: 0 }
    }

    /// Reconciles; the started indexes as `+index`, the stopped pods as `-uid`.
    fn act(&mut self) -> String {
        let uids = &mut self.uids;
        let mut next = || {
            *uids += 1;
            format!("p{uids}")
        };
        let actions = self.controller.reconcile(self.now, &mut next);
        let text = |action: &Action| match action {
            Action::Start(pod) => format!(
                "+{}",
                pod.metadata.labels.as_ref().unwrap()["batch.kubernetes.io/job-completion-index"]
            ),
            Action::Terminate(uid) => format!("-{uid}"),
        };
        for action in &actions {
            if let Action::Start(pod) = action {
                self.controller.started(pod.metadata.uid.as_ref().unwrap(), self.now);
            }
        }
        actions.iter().map(text).collect::<Vec<_>>().join(" ")
    }

    fn exit(&mut self, uid: &str, code: i32) {
        let exit = Exit { code, message: Some(format!("message of {uid}")), ..Exit::default() };
        self.controller.exited(uid, &exit, self.now);
    }

    fn pass(&mut self, seconds: i64) {
        self.now += SignedDuration::from_secs(seconds);
    }

    fn conditions(&self) -> Vec<String> {
        let conditions =
            self.controller.job().status.as_ref().unwrap().conditions.clone().unwrap_or_default();
        conditions.into_iter().map(|c| format!("{}/{}", c.type_, c.reason.unwrap_or_default())).collect()
    }

    fn status(&self) -> Value {
        serde_json::to_value(self.controller.job().status.as_ref().unwrap()).unwrap()
    }
}

#[test]
fn all_indexes_succeed() {
    let mut bench = Bench::new(json!({"completions": 3}));
    assert_eq!(bench.act(), "+0 +1");
    assert_eq!(bench.act(), "", "parallelism holds");
    bench.exit("p1", 0);
    assert_eq!(bench.act(), "+2");
    bench.exit("p2", 0);
    assert!(bench.conditions().is_empty());
    bench.exit("p3", 0);
    assert_eq!(bench.conditions(), ["SuccessCriteriaMet/CompletionsReached", "Complete/CompletionsReached"]);
    let status = bench.status();
    assert_eq!((&status["completedIndexes"], &status["succeeded"]), (&json!("0-2"), &json!(3)));
}

#[test]
fn the_first_success_ends_a_job_with_that_policy_and_complete_waits_for_the_last_pod() {
    let mut bench = Bench::new(json!({"successPolicy": {"rules": [{"succeededCount": 1}]}}));
    assert_eq!(bench.act(), "+0 +1");
    bench.exit("p2", 0);
    assert_eq!(bench.act(), "-p1");
    assert_eq!(bench.conditions(), ["SuccessCriteriaMet/SuccessPolicy"]);
    assert_eq!(bench.status()["terminating"], json!(1));
    assert_eq!(bench.act(), "", "asked to stop once");
    bench.exit("p1", 143);
    assert_eq!(bench.conditions(), ["SuccessCriteriaMet/SuccessPolicy", "Complete/SuccessPolicy"]);
    assert!(bench.controller.quiet());
}

#[test]
fn failures_of_an_index_back_off_and_ignored_ones_too() {
    let mut bench = Bench::new(json!({"completions": 1}));
    assert_eq!(bench.act(), "+0");
    for (failure, (code, delay)) in [(1, 10), (12, 20), (137, 40)].into_iter().enumerate() {
        bench.exit(&format!("p{}", failure + 1), code);
        assert_eq!(bench.controller.next_start(), Some(bench.now + SignedDuration::from_secs(delay)));
        bench.pass(delay - 1);
        assert_eq!(bench.act(), "", "one second early");
        bench.pass(1);
        assert_eq!(bench.act(), "+0");
    }
    let pod = bench.controller.pods().last().unwrap();
    let annotations = pod.metadata.annotations.as_ref().unwrap();
    assert_eq!(annotations["batch.kubernetes.io/job-index-failure-count"], "2");
    assert_eq!(annotations["batch.kubernetes.io/job-index-ignored-failure-count"], "1");
    let first = bench.controller.pods().next().unwrap().status.as_ref().unwrap();
    let ended =
        first.container_statuses.as_ref().unwrap()[0].state.as_ref().unwrap().terminated.as_ref().unwrap();
    assert_eq!((ended.exit_code, ended.message.as_deref()), (1, Some("message of p1")));
}

#[test]
fn a_fail_job_code_stops_the_others_at_once() {
    let mut bench = Bench::new(json!({}));
    bench.act();
    bench.exit("p1", 10);
    assert_eq!(bench.conditions(), ["FailureTarget/PodFailurePolicy"]);
    assert_eq!(bench.act(), "-p2");
    bench.exit("p2", 11);
    assert_eq!(bench.conditions(), ["FailureTarget/PodFailurePolicy", "Failed/PodFailurePolicy"]);
    bench.pass(1000);
    assert_eq!((bench.act().as_str(), bench.controller.next_start()), ("", None));
}

#[test]
fn an_index_beyond_its_limit_fails_the_job() {
    let mut bench = Bench::new(json!({"completions": 1, "backoffLimitPerIndex": 1}));
    bench.act();
    bench.exit("p1", 1);
    bench.pass(10);
    assert_eq!(bench.act(), "+0");
    bench.exit("p2", 1);
    assert_eq!(bench.conditions()[1], "Failed/MaxFailedIndexesExceeded");
    assert_eq!(bench.status()["failedIndexes"], json!("0"));
}

#[test]
fn deletion_stops_the_pods_and_starts_no_other() {
    let mut bench = Bench::new(json!({}));
    bench.act();
    bench.exit("p1", 1);
    assert_eq!(bench.controller.delete(bench.now), [Action::Terminate("p2".into())]);
    assert!(!bench.controller.quiet());
    bench.exit("p2", 143);
    bench.pass(1000);
    assert_eq!((bench.act().as_str(), bench.controller.quiet()), ("", true));
    assert!(bench.conditions().is_empty());
}
