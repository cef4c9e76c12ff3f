//! The environment of a pod process: a container's variables, and its volumes as folders.
//!
//! A process has no mounts of its own: each volume becomes a folder under the pod's, and every
//! variable whose value lies below a `mountPath` is moved there. Only what the planner's pods use
//! is known: ConfigMap, Secret, projected and emptyDir volumes, literals and key references.
//! A mounted Secret that was not given is left out with its variables: credentials then come from
//! the environment of `longstrap local run`, as the SDKs read it.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{ConfigMap, Container, EnvVar, KeyToPath, Pod, Secret, Volume};

use longstrap_crds::Object;

use super::policy::WORKER;

/// What a pod needs that this machine does not have.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MountError {
    /// An object that no manifest and no plan gave.
    #[error("{kind} {name} is not in the manifests given with -f")]
    Missing { kind: &'static str, name: String },
    /// An object without the key.
    #[error("{kind} {name} has no key {key}")]
    MissingKey { kind: &'static str, name: String, key: String },
    /// The file system refused.
    #[error("cannot write {path}: {source}")]
    Io { path: PathBuf, source: io::Error },
}

/// ConfigMaps and Secrets by name.
#[derive(Clone, Debug, Default)]
pub(crate) struct KeyedData {
    maps: BTreeMap<String, BTreeMap<String, Vec<u8>>>,
    secrets: BTreeMap<String, BTreeMap<String, Vec<u8>>>,
}

impl KeyedData {
    /// Adds or replaces a ConfigMap.
    pub(crate) fn put_config_map(&mut self, map: &ConfigMap) {
        let text = map.data.iter().flatten().map(|(key, value)| (key.clone(), value.clone().into_bytes()));
        let bytes = map.binary_data.iter().flatten().map(|(key, value)| (key.clone(), value.0.clone()));
        self.maps.insert(map.metadata.name.clone().unwrap_or_default(), text.chain(bytes).collect());
    }

    /// Adds or replaces a Secret.
    pub(crate) fn put_secret(&mut self, secret: &Secret) {
        let bytes = secret.data.iter().flatten().map(|(key, value)| (key.clone(), value.0.clone()));
        let text =
            secret.string_data.iter().flatten().map(|(key, value)| (key.clone(), value.clone().into_bytes()));
        self.secrets.insert(secret.metadata.name.clone().unwrap_or_default(), bytes.chain(text).collect());
    }

    /// The API keys and prompts that `object` names and that were not given.
    pub(crate) fn missing_for(&self, object: &Object) -> Vec<MountError> {
        let Object::SynthesisJob(job) = object else { return Vec::new() };
        let endpoints = job.spec.generator.endpoints.iter().flatten();
        let keys = endpoints.filter_map(|endpoint| endpoint.api_key_secret_ref.as_ref());
        let keys = keys.map(|key| self.one("Secret", &key.name, &key.key));
        let prompts =
            job.spec.prompts.iter().map(|prompts| self.all("ConfigMap", &prompts.config_map_ref.name));
        keys.filter_map(Result::err).chain(prompts.filter_map(Result::err)).collect()
    }

    fn all(&self, kind: &'static str, name: &str) -> Result<&BTreeMap<String, Vec<u8>>, MountError> {
        let objects = if kind == "Secret" { &self.secrets } else { &self.maps };
        objects.get(name).ok_or_else(|| MountError::Missing { kind, name: name.to_owned() })
    }

    fn one(&self, kind: &'static str, name: &str, key: &str) -> Result<&Vec<u8>, MountError> {
        self.all(kind, name)?.get(key).ok_or_else(|| MountError::MissingKey {
            kind,
            name: name.to_owned(),
            key: key.to_owned(),
        })
    }
}

/// Writes the volumes of `pod`'s worker below `dir` and returns its variables.
pub(crate) fn prepare(
    pod: &Pod,
    data: &KeyedData,
    dir: &Path,
) -> Result<BTreeMap<String, OsString>, MountError> {
    let spec = pod.spec.clone().unwrap_or_default();
    let container = worker(pod).cloned().unwrap_or_default();
    let mut moved: Vec<(String, Option<PathBuf>)> = Vec::new();
    for mount in container.volume_mounts.iter().flatten() {
        let target = dir.join("volumes").join(&mount.name);
        if let Some(volume) = spec.volumes.iter().flatten().find(|volume| volume.name == mount.name) {
            let path = mount.mount_path.trim_end_matches('/').to_owned();
            match write_volume(volume, data, &target) {
                Ok(true) => moved.push((path, Some(target))),
                Ok(false) => {}
                Err(MountError::Missing { .. }) if volume.secret.is_some() => moved.push((path, None)),
                Err(error) => return Err(error),
            }
        }
    }
    // The longest path first: a mount inside another one wins.
    moved.sort_by_key(|(path, _)| std::cmp::Reverse(path.len()));
    let mut env = BTreeMap::new();
    for variable in container.env.iter().flatten() {
        if let Some(value) = value_of(variable, pod, data)?
            && let Some(value) = relocate(value, &moved)
        {
            env.insert(variable.name.clone(), value);
        }
    }
    Ok(env)
}

/// The container whose process stands for the pod.
pub(crate) fn worker(pod: &Pod) -> Option<&Container> {
    pod.spec.as_ref()?.containers.iter().find(|container| container.name == WORKER)
}

/// `None` for a place in a volume that is not here.
fn relocate(value: String, moved: &[(String, Option<PathBuf>)]) -> Option<OsString> {
    for (mount, target) in moved {
        match value.strip_prefix(mount.as_str()) {
            Some("") => return Some(target.clone()?.into_os_string()),
            Some(rest) if rest.starts_with('/') => {
                return Some(target.as_ref()?.join(&rest[1..]).into_os_string());
            }
            _ => {}
        }
    }
    Some(value.into())
}

fn value_of(variable: &EnvVar, pod: &Pod, data: &KeyedData) -> Result<Option<String>, MountError> {
    let Some(source) = &variable.value_from else {
        return Ok(Some(variable.value.clone().unwrap_or_default()));
    };
    let text = |bytes: &Vec<u8>| Some(String::from_utf8_lossy(bytes).into_owned());
    if let Some(key) = &source.secret_key_ref {
        return data.one("Secret", &key.name, &key.key).map(text);
    }
    if let Some(key) = &source.config_map_key_ref {
        return data.one("ConfigMap", &key.name, &key.key).map(text);
    }
    let Some(field) = &source.field_ref else { return Ok(None) };
    let keyed = |map: &Option<BTreeMap<String, String>>, key: &str| {
        map.as_ref().and_then(|map| map.get(key).cloned())
    };
    let path = field.field_path.as_str();
    Ok(match path.split_once("['").map(|(map, key)| (map, key.trim_end_matches("']"))) {
        Some(("metadata.annotations", key)) => keyed(&pod.metadata.annotations, key),
        Some(("metadata.labels", key)) => keyed(&pod.metadata.labels, key),
        Some(_) => None,
        None => match path {
            "metadata.name" => pod.metadata.name.clone(),
            "metadata.namespace" => pod.metadata.namespace.clone(),
            "metadata.uid" => pod.metadata.uid.clone(),
            "status.podIP" => Some("127.0.0.1".into()),
            _ => None,
        },
    })
}

/// Whether the volume became a folder; one of the cluster's own kinds does not.
fn write_volume(volume: &Volume, data: &KeyedData, target: &Path) -> Result<bool, MountError> {
    let io = |source| MountError::Io { path: target.to_owned(), source };
    let write = |kind: &'static str, name: &str, items: Option<&Vec<KeyToPath>>, optional: Option<bool>| {
        let files = match (data.all(kind, name), optional) {
            (Err(MountError::Missing { .. }), Some(true)) => return Ok(()),
            (found, _) => found?,
        };
        let Some(items) = items else {
            return files.iter().try_for_each(|(key, bytes)| write_file(&target.join(key), bytes));
        };
        items
            .iter()
            .try_for_each(|item| write_file(&target.join(&item.path), data.one(kind, name, &item.key)?))
    };
    fs::create_dir_all(target).map_err(io)?;
    if let Some(source) = &volume.config_map {
        write("ConfigMap", &source.name, source.items.as_ref(), source.optional)?;
    } else if let Some(source) = &volume.secret {
        let name = source.secret_name.clone().unwrap_or_default();
        write("Secret", &name, source.items.as_ref(), source.optional)?;
    } else if let Some(projected) = &volume.projected {
        for source in projected.sources.iter().flatten() {
            if let Some(map) = &source.config_map {
                write("ConfigMap", &map.name, map.items.as_ref(), map.optional)?;
            }
            if let Some(secret) = &source.secret {
                write("Secret", &secret.name, secret.items.as_ref(), secret.optional)?;
            }
        }
    } else {
        return Ok(volume.empty_dir.is_some());
    }
    Ok(true)
}

/// Readable by this user alone: it may be a Secret's.
fn write_file(path: &Path, bytes: &[u8]) -> Result<(), MountError> {
    let io = |source| MountError::Io { path: path.to_owned(), source };
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(io)?;
    }
    let mut file =
        fs::OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(path).map_err(io)?;
    io::Write::write_all(&mut file, bytes).map_err(io)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn volumes_become_folders_and_variables_follow_them() {
        let dir = tempfile::tempdir().unwrap();
        let mut data = KeyedData::default();
        data.put_config_map(
            &serde_json::from_value(json!({"metadata": {"name": "task"}, "data": {"task.json": "{}"}}))
                .unwrap(),
        );
        data.put_secret(
            &serde_json::from_value(
                json!({"metadata": {"name": "llm"}, "data": {"key": "YWJj"}, "stringData": {"other": "x"}}),
            )
            .unwrap(),
        );
        let mut pod: Pod = serde_json::from_value(json!({
            "metadata": {"uid": "u1", "annotations": {"batch.kubernetes.io/job-completion-index": "3"}},
            "spec": {"containers": [{"name": "worker",
                "env": [
                    {"name": "TASK", "value": "/etc/longstrap/task.json"},
                    {"name": "SCRATCH", "value": "/scratch"},
                    {"name": "CREDENTIALS", "value": "/absent"},
                    {"name": "NEIGHBOUR", "value": "/scratch-2"},
                    {"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "llm", "key": "key"}}},
                    {"name": "INDEX", "valueFrom": {"fieldRef": {"fieldPath": "metadata.annotations['batch.kubernetes.io/job-completion-index']"}}},
                    {"name": "UID", "valueFrom": {"fieldRef": {"fieldPath": "metadata.uid"}}}],
                "volumeMounts": [{"name": "t", "mountPath": "/etc/longstrap"}, {"name": "s", "mountPath": "/scratch/"}, {"name": "k", "mountPath": "/keys"}, {"name": "x", "mountPath": "/absent"}]}],
              "volumes": [{"name": "t", "configMap": {"name": "task"}}, {"name": "s", "emptyDir": {}},
                {"name": "k", "secret": {"secretName": "llm", "items": [{"key": "other", "path": "a/b"}]}}, {"name": "x", "secret": {"secretName": "s3"}}]}
        })).unwrap();
        let env = prepare(&pod, &data, dir.path()).unwrap();
        let env: BTreeMap<&str, &str> = env.iter().map(|(k, v)| (k.as_str(), v.to_str().unwrap())).collect();
        let volumes = dir.path().join("volumes");
        let at = |path: &str| volumes.join(path).to_str().unwrap().to_owned();
        assert_eq!(env["TASK"], at("t/task.json"));
        assert_eq!((env["SCRATCH"], env.get("CREDENTIALS")), (at("s").as_str(), None));
        assert_eq!(
            [env["NEIGHBOUR"], env["KEY"], env["INDEX"], env["UID"]],
            ["/scratch-2", "abc", "3", "u1"]
        );
        assert_eq!(fs::read_to_string(at("t/task.json")).unwrap(), "{}");
        assert_eq!(fs::read_to_string(at("k/a/b")).unwrap(), "x");

        pod.spec.as_mut().unwrap().volumes.as_mut().unwrap()[0].config_map.as_mut().unwrap().name =
            "gone".into();
        let error = prepare(&pod, &data, dir.path()).unwrap_err().to_string();
        assert_eq!(error, "ConfigMap gone is not in the manifests given with -f");
    }
}
