//! Definitions and objects of earlier versions under the present definitions.
//!
//! The CRDs of the other tests stay as they are: here everything is in a group of its own.

use std::path::{Path, PathBuf};

use kube::{
    Api,
    api::{ApiResource, DynamicObject, PostParams},
    core::GroupVersionKind,
};
use longstrap_api_tests::{Sandbox, apply_crd};
use longstrap_crds::parse;
use serde_json::{Value, json};

const GROUP: &str = "upgrade.longstrap.io";
const CRDS: [&str; 2] = ["synthesisjobs.yaml", "contextextensionruns.yaml"];

fn read(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let docs: Vec<Value> = serde_saphyr::from_multiple(&text).unwrap();
    docs.into_iter().filter(|d| !d.is_null()).collect()
}

async fn install(s: &Sandbox, folder: &Path) {
    for file in CRDS {
        let mut crd = read(&folder.join(file)).remove(0);
        let plural = crd["spec"]["names"]["plural"].as_str().unwrap().to_owned();
        crd["metadata"]["name"] = json!(format!("{plural}.{GROUP}"));
        crd["spec"]["group"] = json!(GROUP);
        s.until(file, async || apply_crd(&s.client, &crd).await).await;
    }
}

fn api(s: &Sandbox, kind: &str) -> Api<DynamicObject> {
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(GROUP, "v1alpha1", kind));
    Api::namespaced_with(s.client.clone(), &s.namespace, &resource)
}

#[tokio::test]
async fn objects_of_earlier_versions_stay_valid() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let folders = std::fs::read_dir(root.join("tests/upgrade")).unwrap().map(|f| f.unwrap().path());
    let mut versions: Vec<PathBuf> = folders.filter(|p| p.is_dir()).collect();
    versions.sort();
    assert!(!versions.is_empty());
    for version in versions {
        let s = Sandbox::new("upgrade").await;
        install(&s, &version).await;
        let objects = [read(&version.join("objects.yaml")), read(&version.join("stored.yaml"))].concat();
        for doc in &objects {
            // What reads manifests and what runs in the cluster read them too.
            let name = doc["metadata"]["name"].as_str().unwrap();
            let read =
                parse(doc).unwrap_or_else(|errors| panic!("{}: {name}: {errors:?}", version.display()));
            let status = read.to_json().unwrap()["status"].clone();
            assert_eq!(status["phase"], doc["status"]["phase"], "{}: {name}", version.display());
            let mut doc = doc.clone();
            doc["apiVersion"] = json!(format!("{GROUP}/v1alpha1"));
            let api = api(&s, doc["kind"].as_str().unwrap());
            let object: DynamicObject = serde_json::from_value(doc.clone()).unwrap();
            // A definition that was just replaced may take a moment to serve.
            let created = s.until(name, async || api.create(&PostParams::default(), &object).await).await;
            if doc["status"].is_object() {
                let object = DynamicObject { metadata: created.metadata, ..object };
                api.replace_status(name, &PostParams::default(), &object).await.unwrap();
            }
        }
        install(&s, &root.join("crds/generated")).await;
        for doc in &objects {
            let (kind, name) = (doc["kind"].as_str().unwrap(), doc["metadata"]["name"].as_str().unwrap());
            let api = api(&s, kind);
            let edited = s
                .until(name, async || {
                    let mut stored = api.get(name).await?;
                    stored.metadata.labels.get_or_insert_default().insert("edited".into(), "1".into());
                    stored.data["spec"]["backoffLimit"] = json!(4);
                    api.replace(name, &PostParams::default(), &stored).await
                })
                .await;
            let told = api.replace_status(name, &PostParams::default(), &edited).await;
            assert!(told.is_ok(), "{}: {kind} {name}: {told:?}", version.display());
        }
        println!("{}: {} objects", version.file_name().unwrap().display(), objects.len());
    }
}
