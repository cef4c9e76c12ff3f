//! The children of one attempt at one step: ConfigMap with the task file, headless Service, Job.
//!
//! Invariant: created once and never changed; nothing is created while the run is terminal, blocked,
//! suspended, waits for data or for its time, or while a Job of that name exists.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::{
        batch::v1::Job,
        core::v1::{ConfigMap, Service},
    },
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference, Time},
};
use longstrap_crds::{
    API_VERSION, Object, Reason, Step, TaskFile, names,
    task::{FORMAT_VERSION, Owner, PinnedData, RunSpec},
    validate,
};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::draft::{Cause, Draft};
use super::steps::{self, Shape};
use super::{Child, NewJob, World, durable, inputs, pod, resources};

/// Exit codes of the worker on which the Job controller fails the Job.
pub(super) const FAIL_JOB: [i32; 2] = [10, 13];
/// So high that only the operator counts failures.
const NEVER: i32 = 1_000_000;
/// Largest task file in bytes; a ConfigMap takes four times as much.
const MAX_TASK: usize = 256 << 10;

/// Plans the children of the current attempt, when it may begin.
pub(super) fn create(draft: &mut Draft<'_>) {
    let stopped = draft.is_terminal() || draft.block.is_some() || draft.object().common().suspend;
    let waits = draft.awaited.is_some() || draft.recovery().next_attempt_time.is_some();
    if stopped || waits || draft.observed().exists {
        return;
    }
    let image = image(draft);
    match children(draft, &image) {
        Ok(children) => {
            draft.create.extend(children);
            draft.event(false, Reason::JobCreated, format!("Job {} is created", draft.child_name()));
            draft.status.image = Some(image);
            draft.status.image_from_spec = draft.object().common().image.is_some();
            let now = Time(draft.now());
            draft.status.start_time.get_or_insert(now);
        }
        Err(cause) => {
            draft.warn(&cause);
            draft.block = Some(cause);
        }
    }
}

/// The image of the next Job: that of the spec; else the operator's, fixed once, so that an upgrade of
/// the operator changes no run. One that the spec named before is not the operator's.
fn image(draft: &Draft<'_>) -> String {
    let own = draft.status.image.as_ref().filter(|_| !draft.status.image_from_spec);
    draft.object().common().image.as_ref().or(own).unwrap_or(&draft.world.config.image).clone()
}

/// What the API server has accepted and cannot work, found before a pod is asked for.
fn contradiction(draft: &Draft<'_>) -> Option<Cause> {
    let doc = draft.object().to_json().ok().filter(|_| draft.step == steps::first())?;
    let error = validate::across(&doc).into_iter().next()?;
    // Nothing that is compared here can be edited.
    let message = format!("{error}; the field cannot be changed: make another {}", draft.object().kind());
    Some(Cause::new(Reason::InvalidData, message))
}

fn children(draft: &Draft<'_>, image: &str) -> Result<[Child; 3], Cause> {
    if let Some(cause) = contradiction(draft) {
        return Err(cause);
    }
    let shape = steps::shape(draft.object(), draft.step);
    let manifest = job(draft, &shape, image);
    if let Some(cause) = durable::refusal(draft, &manifest["spec"]["template"]) {
        return Err(cause);
    }
    let map = config_map(draft, &shape)?;
    let job = Job::deserialize(&manifest).map_err(|e| {
        Cause::new(Reason::InvalidPodTemplate, format!("podTemplate does not make a pod: {e}"))
    })?;
    Ok([
        Child::ConfigMap(Box::new(map)),
        Child::Service(Box::new(service(draft))),
        Child::Job(Box::new(NewJob { job, manifest })),
    ])
}

fn labels(draft: &Draft<'_>) -> Value {
    json!({
        names::LABEL_APP: names::APP,
        names::LABEL_OWNER: draft.object().uid(),
        names::LABEL_STEP: draft.step.to_string(),
        names::LABEL_ATTEMPT: draft.attempt.to_string(),
    })
}

fn metadata(draft: &Draft<'_>) -> ObjectMeta {
    let object = draft.object();
    ObjectMeta {
        name: Some(draft.child_name()),
        namespace: Some(object.namespace().to_owned()),
        labels: serde_json::from_value(labels(draft)).ok(),
        // Without blockOwnerDeletion: it would need a right on our finalizers.
        owner_references: Some(vec![OwnerReference {
            api_version: API_VERSION.to_owned(),
            kind: object.kind().to_owned(),
            name: object.name().to_owned(),
            uid: object.uid().to_owned(),
            controller: Some(true),
            block_owner_deletion: None,
        }]),
        ..ObjectMeta::default()
    }
}

fn task_file(draft: &Draft<'_>, shape: &Shape) -> TaskFile {
    let (object, config) = (draft.object(), &draft.world.config);
    let common = object.common();
    let template = pod::of_user(object, draft.step);
    let child = draft.child_name();
    TaskFile {
        format_version: FORMAT_VERSION,
        owner: Owner {
            cluster: config.cluster.clone(),
            namespace: object.namespace().to_owned(),
            name: object.name().to_owned(),
            uid: object.uid().to_owned(),
        },
        attempt: draft.attempt,
        step: draft.step,
        spec: spec_for_pods(object),
        data: draft
            .data
            .iter()
            .map(|d| PinnedData { name: d.name.clone(), uri: d.uri.clone(), digest: d.digest.clone() })
            .collect(),
        stages: shape.stages.clone(),
        workers: shape.pods,
        ranks_per_node: shape.ranks_per_node,
        threads_per_rank: resources::threads_per_rank(
            template.as_ref(),
            shape.ranks_per_node,
            config.threads_per_rank,
        ),
        backoff_limit: common.backoff_limit,
        rank_timeout_seconds: common.recovery.rank_timeout_seconds,
        grace_seconds: u32::try_from(pod::grace_seconds(draft)).ok(),
        outage_timeout_seconds: config.outage_timeout_seconds,
        rendezvous_host: config
            .rendezvous_host
            .clone()
            .unwrap_or_else(|| format!("{child}-0.{child}.{}.svc", object.namespace())),
        ports: config.ports,
        one_machine: config.one_machine,
    }
}

/// The spec without what is about pods: they read the file.
fn spec_for_pods(object: &Object) -> RunSpec {
    let mut spec = object.spec();
    match &mut spec {
        RunSpec::SynthesisJob(spec) => spec.common.pod_template = None,
        RunSpec::ContextExtensionRun(spec) => {
            spec.common.pod_template = None;
            spec.stages.iter_mut().for_each(|stage| stage.pod_template = None);
        }
    }
    spec
}

fn config_map(draft: &Draft<'_>, shape: &Shape) -> Result<ConfigMap, Cause> {
    let task = serde_json::to_string(&task_file(draft, shape))
        .map_err(|e| Cause::new(Reason::InvalidData, format!("the task file cannot be written: {e}")))?;
    if task.len() > MAX_TASK {
        let message = format!(
            "the task file of {} has {} bytes, at most {MAX_TASK} are passed to pods: shorten spec.storage.options",
            draft.step,
            task.len()
        );
        return Err(Cause::new(Reason::DoesNotFit, message));
    }
    Ok(ConfigMap {
        metadata: metadata(draft),
        data: Some([(names::TASK_KEY.to_owned(), task)].into()),
        immutable: Some(true),
        ..ConfigMap::default()
    })
}

/// Gives the pods of an Indexed Job names: `<job>-<index>.<service>`.
fn service(draft: &Draft<'_>) -> Service {
    let spec = json!({
        "clusterIP": "None",
        // The agents must find each other before any of them is ready.
        "publishNotReadyAddresses": true,
        "selector": {"batch.kubernetes.io/job-name": draft.child_name()},
        "ports": [
            {"name": "rendezvous", "port": draft.world.config.ports.rendezvous},
            {"name": "progress", "port": draft.world.config.ports.progress},
        ],
    });
    Service { metadata: metadata(draft), spec: serde_json::from_value(spec).ok(), ..Service::default() }
}

/// What is Kueue's among the labels or annotations of the object.
fn of_kueue(of_object: Option<&BTreeMap<String, String>>) -> Map<String, Value> {
    let ours = of_object.into_iter().flatten().filter(|(key, _)| key.starts_with(names::KUEUE_PREFIX));
    ours.map(|(key, value)| (key.clone(), json!(value))).collect()
}

fn job(draft: &Draft<'_>, shape: &Shape, image: &str) -> Value {
    let object = draft.object();
    let labels = labels(draft);
    let exit = |codes: &[i32]| json!({"containerName": names::CONTAINER, "operator": "In", "values": codes});
    let mut spec = json!({
        "completionMode": "Indexed",
        "completions": shape.pods,
        "parallelism": shape.pods,
        // Per index, because the Job-wide back-off is never reset.
        "backoffLimitPerIndex": NEVER,
        "maxFailedIndexes": 0,
        "podReplacementPolicy": "Failed",
        // The first rule that matches a pod decides.
        "podFailurePolicy": {"rules": [
            {"action": "FailJob", "onExitCodes": exit(&FAIL_JOB)},
            {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
            {"action": "Ignore", "onExitCodes": exit(&[11, 12, 143])},
        ]},
        "template": pod::template(draft, shape, image, &labels),
    });
    if shape.first_success_ends {
        spec["successPolicy"] = json!({"rules": [{"succeededCount": 1}]});
    }
    let mut metadata = serde_json::to_value(metadata(draft)).unwrap_or_default();
    metadata["annotations"] = json!({
        names::ANNOTATION_OWNER: format!("{}/{}", object.namespace(), object.name()),
        names::ANNOTATION_INPUTS: inputs::hash(object),
        names::ANNOTATION_BACKOFF_LIMIT: object.common().backoff_limit.to_string(),
    });
    if matches!(draft.step, Step::Train(_)) {
        metadata["annotations"][names::ANNOTATION_STAGES_END] = json!(shape.stages.end.to_string());
    }
    let of_object = object.metadata();
    for (place, of_object) in [("labels", &of_object.labels), ("annotations", &of_object.annotations)] {
        for (key, value) in of_kueue(of_object.as_ref()) {
            metadata[place][key] = value;
        }
    }
    if let Some(queue) = object.common().auxiliary_queue_name.as_ref().filter(|_| shape.auxiliary) {
        metadata["labels"][names::LABEL_QUEUE] = json!(queue);
    }
    json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": spec})
}

/// The Jobs that the run will have from its present step on, as JSON, to have the API server look at
/// them: typed, they would lose what the types do not know.
pub fn manifests(world: &World) -> Vec<(Step, Value)> {
    let mut draft = Draft::new(world);
    let image = image(&draft);
    let mut manifests = Vec::new();
    let mut step = Some(draft.step);
    while let Some(this) = step {
        draft.step = this;
        manifests.push((this, job(&draft, &steps::shape(draft.object(), this), &image)));
        step = steps::next(draft.object(), this, None);
    }
    manifests
}

/// The pods that a step asks for.
pub(super) fn pods_wanted(draft: &Draft<'_>, step: Step) -> u32 {
    steps::shape(draft.object(), step).pods
}
