//! The pod of a step: ours, with the user's podTemplate merged in.
//!
//! Invariant: it runs under Restricted Pod Security unless the user says otherwise; labels, task
//! file and command are ours whatever the user says.

use longstrap_crds::{Object, Step, names, pod_template::PodTemplate, task};
use serde_json::{Value, json};

use super::draft::Draft;
use super::steps::{self, Shape};
use super::{lost_nodes, merge::merge, nodes, resources};

const TASK_DIR: &str = "/etc/longstrap/task";
const CREDENTIALS_DIR: &str = "/etc/longstrap/credentials";
const API_KEYS_DIR: &str = "/etc/longstrap/api-keys";
const PROMPTS_DIR: &str = "/etc/longstrap/prompts";
const CACHE_DIR: &str = "/var/cache/longstrap";

/// By which autoscalers are asked to leave a pod alone: a gang that loses one loses minutes of all.
const DO_NOT_DISTURB: [(&str, &str); 2] =
    [("cluster-autoscaler.kubernetes.io/safe-to-evict", "false"), ("karpenter.sh/do-not-disrupt", "true")];

/// What the user says about the pods of a step: spec.podTemplate, and that of the stage merged in.
pub(super) fn of_user(object: &Object, step: Step) -> Option<PodTemplate> {
    let all = object.common().pod_template.clone();
    let own = steps::leading_stage(object, step).and_then(|stage| stage.pod_template.clone());
    match (all, own) {
        (Some(all), Some(own)) => {
            let mut both = Value::Object(all.0);
            merge(&mut both, &Value::Object(own.0));
            both.as_object().cloned().map(PodTemplate)
        }
        (all, own) => own.or(all),
    }
}

/// Seconds that a pod gets to save its state when it is told to stop: what the upload of a checkpoint
/// takes on a slow connection (250 MB/s), at least two minutes, at most an hour; or what the user says.
pub(super) fn grace_seconds(draft: &Draft<'_>) -> u64 {
    let over = of_user(draft.object(), draft.step);
    let said = over.as_ref().and_then(|t| t.0.get("spec")?.get("terminationGracePeriodSeconds")?.as_u64());
    if let Some(seconds) = said {
        return seconds;
    }
    let bytes = match draft.step {
        Step::Train(_) => draft.status.recovery.checkpoint_bytes.unwrap_or(0),
        _ => 0,
    };
    (60 + bytes / 250_000_000).clamp(120, 3600)
}

/// PodTemplateSpec of the draft's step, as JSON.
pub(super) fn template(draft: &Draft<'_>, shape: &Shape, image: &str, labels: &Value) -> Value {
    let (object, step, config) = (draft.object(), draft.step, &draft.world.config);
    let child = draft.child_name();
    let mounts = mounts(object);
    let metadata = match step {
        Step::Train(_) => json!({"annotations": Value::from_iter(DO_NOT_DISTURB)}),
        _ => json!({}),
    };
    let volumes: Vec<Value> = [
        json!({"name": "longstrap-task", "configMap": {"name": child}}),
        json!({"name": "longstrap-cache", "emptyDir": {}}),
    ]
    .into_iter()
    .chain(mounts.iter().map(|m| {
        let mut volume = m.volume.clone();
        volume["name"] = json!(m.name);
        volume
    }))
    .collect();
    let volume_mounts: Vec<Value> = [
        json!({"name": "longstrap-task", "mountPath": TASK_DIR, "readOnly": true}),
        json!({"name": "longstrap-cache", "mountPath": CACHE_DIR}),
    ]
    .into_iter()
    .chain(mounts.iter().map(|m| json!({"name": m.name, "mountPath": m.path, "readOnly": true})))
    .collect();
    let env: Vec<Value> = [
        json!({"name": task::ENV_TASK, "value": format!("{TASK_DIR}/{}", names::TASK_KEY)}),
        json!({"name": task::ENV_POD_UID, "valueFrom": {"fieldRef": {"fieldPath": "metadata.uid"}}}),
        json!({"name": task::ENV_TERMINATION_FILE, "value": "/dev/termination-log"}),
        json!({"name": task::ENV_PROGRESS_PORT, "value": config.ports.progress.to_string()}),
        json!({"name": task::ENV_CACHE_DIR, "value": CACHE_DIR}),
        // The root file system is read-only.
        json!({"name": "TMPDIR", "value": CACHE_DIR}),
    ]
    .into_iter()
    .chain(mounts.iter().map(|m| json!({"name": m.env, "value": m.path})))
    .collect();
    let mut template = json!({
        "metadata": metadata,
        "spec": {
            "automountServiceAccountToken": false,
            "enableServiceLinks": false,
            "terminationGracePeriodSeconds": grace_seconds(draft),
            "securityContext": {
                "runAsNonRoot": true,
                "runAsUser": 65532,
                "runAsGroup": 65532,
                "fsGroup": 65532,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "tolerations": [],
            "containers": [{
                "name": names::CONTAINER,
                "image": image,
                "env": env,
                "ports": [
                    {"name": "rendezvous", "containerPort": config.ports.rendezvous},
                    {"name": "progress", "containerPort": config.ports.progress},
                ],
                "securityContext": {
                    "allowPrivilegeEscalation": false,
                    "readOnlyRootFilesystem": true,
                    "capabilities": {"drop": ["ALL"]},
                },
                "volumeMounts": volume_mounts,
            }],
            "volumes": volumes,
        },
    });
    if let Some(over) = of_user(object, step) {
        merge(&mut template, &Value::Object(over.0));
    }
    // After the merge: nobody's labels may hide our pods, and a pod never restarts in place.
    merge(
        &mut template,
        &json!({
            "metadata": {
                "labels": labels,
                "annotations": {names::ANNOTATION_OWNER: format!("{}/{}", object.namespace(), object.name())},
            },
            "spec": {
                "restartPolicy": "Never",
                "subdomain": child,
                "containers": [{"name": names::CONTAINER, "command": ["longstrap-worker", step.command()]}],
            },
        }),
    );
    for containers in ["initContainers", "containers"] {
        let list = template["spec"].get_mut(containers).and_then(Value::as_array_mut);
        for container in list.into_iter().flatten() {
            if shape.auxiliary {
                resources::drop_devices(container);
            }
            resources::complete(container);
        }
    }
    lost_nodes::tolerate(&mut template["spec"]);
    nodes::avoid(&mut template["spec"], &draft.status.recovery.avoided_nodes);
    template
}

/// Something of the user's that a pod gets as files.
struct Mount {
    name: &'static str,
    path: &'static str,
    env: &'static str,
    volume: Value,
}

fn mounts(object: &Object) -> Vec<Mount> {
    let mut mounts = Vec::new();
    if let Some(secret) = &object.common().storage.credentials_secret_ref {
        mounts.push(Mount {
            name: "longstrap-credentials",
            path: CREDENTIALS_DIR,
            env: task::ENV_CREDENTIALS_DIR,
            volume: json!({"secret": {"secretName": secret.name}}),
        });
    }
    let Object::SynthesisJob(job) = object else { return mounts };
    let keys: Vec<Value> = job
        .spec
        .generator
        .endpoints
        .iter()
        .flatten()
        .filter_map(|endpoint| {
            let secret = endpoint.api_key_secret_ref.as_ref()?;
            Some(json!({"secret": {"name": secret.name, "items": [{"key": secret.key, "path": endpoint.name}]}}))
        })
        .collect();
    if !keys.is_empty() {
        mounts.push(Mount {
            name: "longstrap-api-keys",
            path: API_KEYS_DIR,
            env: task::ENV_API_KEYS_DIR,
            volume: json!({"projected": {"sources": keys}}),
        });
    }
    if let Some(prompts) = &job.spec.prompts {
        mounts.push(Mount {
            name: "longstrap-prompts",
            path: PROMPTS_DIR,
            env: task::ENV_PROMPTS_DIR,
            volume: json!({"configMap": {"name": prompts.config_map_ref.name}}),
        });
    }
    mounts
}
