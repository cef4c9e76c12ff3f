//! `longstrap logs`: what the pods of an attempt wrote; of a pod whose log cannot be had, and of
//! pods that are gone, the last message that they left.

use std::collections::BTreeSet;
use std::pin::{Pin, pin};

use anyhow::{Result, bail};
use clap::Args;
use futures::stream::SelectAll;
use futures::{AsyncBufReadExt, Stream, StreamExt};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::LogParams;
use kube::runtime::watcher::{self, Event, watch_object};
use kube::runtime::{WatchStreamExt, watcher as watch_all};
use longstrap_crds::names::{CONTAINER, child_name};
use longstrap_crds::{ContextExtensionRun, Object, Phase, Step};

use super::access::{Access, Cluster};
use super::children::{self, EventView, PodView};
use super::error::{self, Request};
use super::follow::lasting;
use super::output;
use super::target::{Found, Target, find};
use super::words;

/// Options of `logs`.
#[derive(Args, Clone, Debug)]
pub(crate) struct LogsArgs {
    /// Object, as docs, synth/docs or cer/run
    #[arg(value_name = "[KIND/]NAME")]
    target: Target,
    /// Of this attempt; by default the newest one whose pods exist
    #[arg(long, value_name = "N")]
    attempt: Option<u32>,
    /// Of this step (prepare, generate, train-0, …); by default the attempt's newest
    #[arg(long)]
    step: Option<Step>,
    /// Of the pod with this index; by default all pods
    #[arg(long, value_name = "N", conflicts_with = "rank")]
    index: Option<u32>,
    /// Of the pod in which this training process runs
    #[arg(long, value_name = "N")]
    rank: Option<u32>,
    /// Go on with what is being written, also by pods to come, until the run stops
    #[arg(short, long)]
    follow: bool,
    /// Only so many of the newest lines of each pod
    #[arg(long, value_name = "LINES")]
    tail: Option<u32>,
    #[command(flatten)]
    access: Access,
}

type Lines = Pin<Box<dyn Stream<Item = String> + Send>>;

/// Which pods are meant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Wanted {
    attempt: Option<u32>,
    step: Option<Step>,
    index: Option<u32>,
}

impl Wanted {
    fn holds(&self, pod: &PodView) -> bool {
        self.attempt.is_none_or(|attempt| attempt == pod.attempt)
            && self.step.is_none_or(|step| pod.step == Some(step))
            && self.index.is_none_or(|index| index == pod.index)
    }

    /// The pods of the newest Job among those that are meant; `pods` are in the order of time.
    fn newest<'p>(&self, pods: &'p [PodView]) -> Vec<&'p PodView> {
        let meant: Vec<_> = pods.iter().filter(|pod| self.holds(pod)).collect();
        let Some(job) = meant.last().map(|pod| (pod.attempt, pod.step)) else { return meant };
        meant.into_iter().filter(|pod| (pod.attempt, pod.step) == job).collect()
    }
}

/// Prints the logs.
pub(crate) async fn logs(args: &LogsArgs) -> Result<u8> {
    let cluster = Cluster::connect(&args.access).await?;
    let found = find(&cluster, &args.target).await?;
    let wanted = Wanted { attempt: args.attempt, step: args.step, index: index(args, &found.object)? };
    let reader = Reader { cluster: &cluster, follow: args.follow, tail: args.tail };
    if args.follow && !ended(&found.object) {
        return reader.go_on(&found, wanted).await.map(|()| 0);
    }
    let pods = children::pods_of(&cluster, found.object.uid()).await?;
    let pods = wanted.newest(&pods);
    if pods.is_empty() {
        return remembered(&cluster, &found, wanted).await;
    }
    let many = pods.len() > 1;
    for pod in pods {
        let mut lines = reader.lines(pod.clone(), many);
        while let Some(line) = lines.next().await {
            if !output::say(&line)? {
                return Ok(0);
            }
        }
    }
    Ok(0)
}

fn index(args: &LogsArgs, object: &Object) -> Result<Option<u32>> {
    match (args.rank, object) {
        (None, _) => Ok(args.index),
        (Some(rank), Object::ContextExtensionRun(run)) => Ok(Some(rank / ranks_per_node(run, args.step))),
        (Some(_), Object::SynthesisJob(_)) => {
            bail!("a SynthesisJob has no ranks: choose a pod with --index")
        }
    }
}

/// Ranks of each pod of a training step; by default of the one that the run is at.
fn ranks_per_node(run: &ContextExtensionRun, step: Option<Step>) -> u32 {
    let at = run.status.as_ref().and_then(|status| status.common.step.as_ref()?.parse().ok());
    // A training step is called by its first stage.
    let stage = match step.or(at) {
        Some(Step::Train(first)) => run.spec.stages.get(first as usize),
        _ => run.spec.stages.last(),
    };
    let shared = &run.spec.parallelism;
    stage.map_or(shared.ranks_per_node, |stage| stage.parallelism(shared).ranks_per_node).max(1)
}

/// No pod comes any more, unless somebody acts.
fn ended(object: &Object) -> bool {
    matches!(object.phase(), Some(Phase::Complete | Phase::Failed | Phase::Blocked | Phase::Suspended))
}

struct Reader<'a> {
    cluster: &'a Cluster,
    follow: bool,
    tail: Option<u32>,
}

impl Reader<'_> {
    /// A pod's log, or what else is known of it; asked for when it is first polled. With `prefix`
    /// each line tells its pod.
    fn lines(&self, pod: PodView, prefix: bool) -> Lines {
        let prefix = if prefix { format!("[{}] ", pod.index) } else { String::new() };
        let params = LogParams {
            container: Some(CONTAINER.to_owned()),
            follow: self.follow,
            tail_lines: self.tail.map(i64::from),
            ..LogParams::default()
        };
        futures::stream::once(open(self.cluster.api(), pod, params, prefix)).flatten().boxed()
    }

    /// Follows the pods that are there and those to come, until the run stops.
    async fn go_on(&self, found: &Found, wanted: Wanted) -> Result<()> {
        let request = Request { verb: "watch", resource: "pods", name: "" };
        let config = watcher::Config::default().labels(&children::selector(found.object.uid()));
        let pods = watch_all(self.cluster.api::<Pod>(), config).default_backoff();
        let mut pods = pin!(lasting(pods, |error| self.cluster.explain(request, error)));
        let object = watch_object(found.api(self.cluster), found.name()).default_backoff();
        let mut object = pin!(lasting(object, |error| self.cluster.explain(found.request("watch"), error)));
        let mut lines: SelectAll<Lines> = SelectAll::new();
        let (mut first, mut seen, mut over) = (Some(Vec::new()), BTreeSet::new(), false);
        while !over || !lines.is_empty() {
            let mut started = Vec::new();
            tokio::select! {
                Some(line) = lines.next(), if !lines.is_empty() => if !output::say(&line)? { break },
                Some(event) = pods.next(), if !over => match event? {
                    // Of what is there already, the newest Job's pods.
                    Event::InitApply(pod) => if let Some(there) = &mut first { there.push(PodView::new(&pod)) },
                    Event::InitDone => {
                        let there = first.take().unwrap_or_default();
                        started = wanted.newest(&sorted(there)).into_iter().cloned().collect();
                    }
                    Event::Apply(pod) => started.push(PodView::new(&pod)),
                    Event::Init | Event::Delete(_) => {}
                },
                Some(state) = object.next(), if !over => {
                    let state = state?.map(|raw| Found::new(found.kind, raw)).transpose()?;
                    if let Some(now) = state.as_ref().filter(|now| ended(&now.object)) {
                        eprintln!("{} is {}: {}", found.described(), words::phase(&now.object), words::cause_words(&now.object));
                    }
                    over = state.is_none_or(|now| ended(&now.object));
                }
                else => break,
            }
            for pod in started {
                if wanted.holds(&pod) && pod.started && seen.insert(pod.name.clone()) {
                    eprintln!("pod {} ({})", pod.name, pod.phase.to_lowercase());
                    lines.push(self.lines(pod, true));
                }
            }
        }
        Ok(())
    }
}

/// Opens the log of a pod; without one, its last message is the only line.
async fn open(pods: Api<Pod>, pod: PodView, params: LogParams, prefix: String) -> Lines {
    if !pod.started {
        let waits = pod.waiting.unwrap_or_else(|| "it has not started".to_owned());
        eprintln!("pod {} has no log yet: {waits}", pod.name);
        return futures::stream::empty().boxed();
    }
    let why = match pods.log_stream(&pod.name, &params).await {
        Ok(stream) => {
            let mut lines = Box::pin(stream.lines().peekable());
            if lines.as_mut().peek().await.is_some() {
                let line = move |line: std::io::Result<String>| match line {
                    Ok(line) => format!("{prefix}{line}"),
                    Err(error) => format!("{prefix}the log of pod {} breaks off: {error}", pod.name),
                };
                return lines.map(line).boxed();
            }
            "is empty".to_owned()
        }
        Err(error) => format!("cannot be had: {}", error::short(&error)),
    };
    eprintln!("the log of pod {} {why}", pod.name);
    let last = pod.ended().map(|end| format!("{prefix}its last message: {end}"));
    futures::stream::iter(last).boxed()
}

fn sorted(mut pods: Vec<PodView>) -> Vec<PodView> {
    children::sort(&mut pods);
    pods
}

/// Without pods, whose logs went with them: what the status and Events still tell.
async fn remembered(cluster: &Cluster, found: &Found, wanted: Wanted) -> Result<u8> {
    let events = children::events(cluster, found).await?;
    let now = Timestamp::now();
    let left = last_messages(&found.object, &events, wanted, now);
    let which = wanted.attempt.map(|n| format!(" of attempt {n}")).unwrap_or_default();
    if left.lines.is_empty() {
        let newest = found.object.status().attempt.unwrap_or(0);
        let why = match wanted.attempt.is_some_and(|attempt| attempt > newest) {
            true => format!("its newest attempt is {newest}"),
            false => "nothing is left of what they said: logs go with their pods, Events after an hour or \
                      what the cluster is told"
                .to_owned(),
        };
        bail!(
            "{} has no pods{which}, and {why}; it is {}",
            found.described(),
            words::line(&found.object, now)
        );
    }
    let failure = match left.failures {
        true => "",
        false => "; none is of a failure: a pod that has done its work or was told to stop leaves no words",
    };
    eprintln!(
        "there are no pods{which}, and their logs are gone with them; what Events remember, the newest first{failure}:"
    );
    output::say(&left.lines.join("\n")).map(|_| 0)
}

/// What Events remember.
#[derive(Debug, Default, PartialEq)]
struct Left {
    /// The newest first.
    lines: Vec<String>,
    /// One of them tells of a failure.
    failures: bool,
}

/// All Events; of one attempt those that name one of its Jobs or a pod of it.
fn last_messages(object: &Object, events: &[EventView], wanted: Wanted, now: Timestamp) -> Left {
    let steps = [Step::Prepare, Step::Generate, Step::Finalize, Step::Export];
    let trains = (0..16).map(Step::Train);
    let steps = steps.into_iter().chain(trains).filter(|s| wanted.step.is_none_or(|step| step == *s));
    let jobs: Vec<String> = wanted.attempt.map_or_else(Vec::new, |attempt| {
        steps.map(|step| child_name(object.name(), object.uid(), step, attempt)).collect()
    });
    let of_them = |event: &&EventView| jobs.is_empty() || jobs.iter().any(|job| names(&event.message, job));
    let line =
        |event: &EventView| format!("{}, {}: {}", words::ago(event.at, now), event.reason, event.message);
    let told: Vec<&EventView> = events.iter().filter(of_them).collect();
    let failures = told.iter().any(|event| event.warning);
    Left { lines: told.into_iter().map(line).collect(), failures }
}

/// Whether a message names a Job or one of its pods (`<job>-<index>-…`), not a Job whose name begins
/// alike.
fn names(message: &str, job: &str) -> bool {
    message.match_indices(job).any(|(at, _)| {
        let next = message[at + job.len()..].chars().next();
        next.is_none_or(|c| !c.is_ascii_alphanumeric())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(step: Step, attempt: u32, index: u32) -> PodView {
        let pod = json!({"metadata": {
            "name": format!("{step}-{attempt}-{index}"),
            "labels": {"longstrap.io/step": step.to_string(), "longstrap.io/attempt": attempt.to_string()},
            "annotations": {"batch.kubernetes.io/job-completion-index": index.to_string()},
        }});
        PodView::new(&serde_json::from_value(pod).unwrap())
    }

    #[test]
    fn the_newest_job_that_is_meant() {
        let pods = sorted(vec![
            pod(Step::Train(0), 3, 1),
            pod(Step::Prepare, 1, 0),
            pod(Step::Train(0), 2, 0),
            pod(Step::Train(0), 3, 0),
            pod(Step::Prepare, 2, 0),
        ]);
        let shown = |wanted: Wanted| {
            let names = wanted.newest(&pods).iter().map(|p| p.name.clone()).collect::<Vec<_>>();
            names.join(" ")
        };
        let all = Wanted::default();
        for (wanted, names) in [
            (all, "train-0-3-0 train-0-3-1"),
            (Wanted { attempt: Some(2), ..all }, "train-0-2-0"),
            (Wanted { step: Some(Step::Prepare), ..all }, "prepare-2-0"),
            (Wanted { attempt: Some(1), ..all }, "prepare-1-0"),
            (Wanted { index: Some(1), ..all }, "train-0-3-1"),
            (Wanted { attempt: Some(4), ..all }, ""),
        ] {
            assert_eq!(shown(wanted), names, "{wanted:?}");
        }
    }

    #[test]
    fn events_of_one_attempt_are_those_that_name_its_job() {
        let object = crate::cluster::tests::run(json!({}));
        let event = |warning, message: String| EventView {
            warning,
            reason: "PodFailed".to_owned(),
            message,
            at: "2026-01-01T00:00:00Z".parse().ok(),
        };
        let job = |attempt| child_name(object.name(), object.uid(), Step::Train(0), attempt);
        let events = [
            // Of exit codes 10, 12 and 13: the worker's own words.
            event(true, format!("pod {}-0-x: no chat template", job(3))),
            event(true, format!("pod {}-0-x ended with code 1: second", job(2))),
            event(false, format!("Job {} is deleted", job(4))),
            event(true, format!("pod {}-0-x ended with code 1: first", job(1))),
            event(false, format!("Job {} is created", job(120))),
        ];
        let now = "2026-01-01T00:01:00Z".parse().unwrap();
        let told = |attempt| last_messages(&object, &events, Wanted { attempt, ..Wanted::default() }, now);
        assert_eq!((told(None).lines.len(), told(None).failures), (5, true));
        let lines = vec![format!("1m 00s ago, PodFailed: pod {}-0-x ended with code 1: first", job(1))];
        assert_eq!(told(Some(1)), Left { lines, failures: true });
        assert!(told(Some(3)).lines[0].ends_with(": no chat template"));
        // Of pods that ended with 0, 11 or 143 nobody has said anything but that their Job was there.
        let lines = vec![format!("1m 00s ago, PodFailed: Job {} is deleted", job(4))];
        assert_eq!(told(Some(4)), Left { lines, failures: false });
        assert_eq!(told(Some(12)), Left::default());
    }
}
