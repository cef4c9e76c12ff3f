//! `longstrap validate` and the API server say the same of the same manifest, field by field.

use std::{collections::BTreeSet, path::Path};

use kube::{
    Client,
    api::PostParams,
    core::{Request, Status},
};
use longstrap_api_tests::{
    Sandbox,
    seed::{Random, seed},
};
use longstrap_crds::validate;
use serde_json::{Value, json};

const MUTATIONS: usize = 300;

/// Every document of the examples.
fn examples() -> Vec<Value> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples");
    let mut docs = Vec::new();
    for folder in std::fs::read_dir(root).unwrap() {
        for file in std::fs::read_dir(folder.unwrap().path()).unwrap() {
            let path = file.unwrap().path();
            if path.extension().is_some_and(|e| e == "yaml") {
                let text = std::fs::read_to_string(path).unwrap();
                let some: Vec<Value> = serde_saphyr::from_multiple(&text).unwrap();
                docs.extend(some.into_iter().filter(|d| d["apiVersion"] == longstrap_crds::API_VERSION));
            }
        }
    }
    docs.sort_by_key(ToString::to_string);
    assert!(docs.len() >= 4, "{} examples", docs.len());
    docs
}

/// JSON pointers of all values below one.
fn pointers(at: &str, value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(map) => map.iter().for_each(|(key, value)| {
            let at = format!("{at}/{}", key.replace('~', "~0").replace('/', "~1"));
            pointers(&at, value, found);
            found.push(at);
        }),
        Value::Array(items) => items.iter().enumerate().for_each(|(i, value)| {
            pointers(&format!("{at}/{i}"), value, found);
            found.push(format!("{at}/{i}"));
        }),
        _ => {}
    }
}

/// One change at one place; what it did, in words.
fn mutate(doc: &mut Value, random: &mut Random) -> String {
    let mut places = Vec::new();
    pointers("/spec", &doc["spec"], &mut places);
    let place = random.pick(&places).clone();
    let keys: Vec<String> = places.iter().filter_map(|p| Some(p.rsplit_once('/')?.1.to_owned())).collect();
    let values = [
        json!(null),
        json!(true),
        json!(-1),
        json!(0),
        json!(1.5),
        json!(9_007_199_254_740_993_i64),
        json!(""),
        json!("x"),
        json!("0"),
        json!("16ki"),
        json!("1Ki"),
        json!("999999Gi"),
        json!("1e-4"),
        json!("s3://user:secret@b/x"),
        json!("s3://b/x?X-Amz-Signature=1"),
        json!("ftp://b/x"),
        json!("x".repeat(5000)),
        json!([]),
        json!({}),
        json!(["x"]),
        json!({"x": 1}),
    ];
    let (parent, key) = place.rsplit_once('/').unwrap();
    match random.below(8) {
        0 | 1 => {
            let parent = doc.pointer_mut(parent).unwrap();
            match parent {
                Value::Array(items) => drop(items.remove(key.parse().unwrap())),
                _ => drop(parent.as_object_mut().unwrap().remove(key)),
            }
            format!("{place} is removed")
        }
        2 => {
            let name = if random.below(2) == 0 { "nonsense".to_owned() } else { random.pick(&keys).clone() };
            let value = random.pick(&values).clone();
            match doc.pointer_mut(&place).unwrap() {
                Value::Object(map) => drop(map.insert(name.clone(), value.clone())),
                Value::Array(items) => items.push(value.clone()),
                other => *other = value.clone(),
            }
            format!("{place} gets {name}: {value}")
        }
        3 => {
            if let Value::Array(items) = doc.pointer_mut(&place).unwrap()
                && let Some(first) = items.first().cloned()
            {
                items.push(first);
            }
            format!("the first item of {place} is doubled")
        }
        _ => {
            let value = random.pick(&values).clone();
            *doc.pointer_mut(&place).unwrap() = value.clone();
            format!("{place} becomes {value}")
        }
    }
}

/// The paths of the fields that the server refuses.
fn paths(status: &Status) -> BTreeSet<String> {
    let causes = status.details.iter().flat_map(|d| &d.causes).map(|c| c.field.clone());
    // Unknown fields come before everything else, as text alone.
    let unknown = status.message.split("unknown field \"").skip(1).filter_map(|t| t.split('"').next());
    causes.filter(|f| !f.is_empty() && f != "<nil>").chain(unknown.map(str::to_owned)).collect()
}

/// A dry run of its creation, strict about fields.
async fn server_says(client: &Client, namespace: &str, doc: &Value) -> Option<Status> {
    let plural = match doc["kind"].as_str() {
        Some("SynthesisJob") => "synthesisjobs",
        _ => "contextextensionruns",
    };
    let url = format!("/apis/longstrap.io/v1alpha1/namespaces/{namespace}/{plural}");
    let params = PostParams { dry_run: true, ..PostParams::default() };
    let mut request = Request::new(url).create(&params, doc.to_string().into_bytes()).unwrap();
    *request.uri_mut() = format!("{}&fieldValidation=Strict", request.uri()).parse().unwrap();
    match client.request::<Value>(request).await {
        Ok(_) => None,
        Err(kube::Error::Api(status)) => Some(*status),
        Err(error) => panic!("{error}"),
    }
}

/// Only ours: what CEL cannot say within the server's cost limits.
fn only_ours(message: &str) -> bool {
    ["must be longer than", "must not be shorter than"].iter().any(|words| message.contains(words))
}

/// Two paths that mean one field. Of names used twice the server tells the item; in a value that should
/// not be an object it tells of the unknown fields first.
fn is_same(ours: &str, theirs: &str) -> bool {
    let below = theirs.strip_prefix(ours).is_some_and(|rest| rest.starts_with('.'));
    ours == theirs || ours.strip_suffix(".name") == Some(theirs) || below
}

#[tokio::test]
async fn longstrap_and_the_server_refuse_the_same_manifests() {
    let s = Sandbox::new("validation").await;
    let seed = seed();
    println!("seed {seed}");
    let mut random = Random::new(seed);
    let examples = examples();
    for doc in &examples {
        let server = server_says(&s.client, &s.namespace, doc).await;
        assert!(validate(doc).is_empty() && server.is_none(), "{}: {server:?}", doc["metadata"]["name"]);
    }
    let (mut refused, mut wrong) = (0, Vec::new());
    for _ in 0..MUTATIONS {
        let mut doc = random.pick(&examples).clone();
        let what = mutate(&mut doc, &mut random);
        let ours = validate(&doc);
        let server = server_says(&s.client, &s.namespace, &doc).await;
        let theirs = server.as_ref().map(paths).unwrap_or_default();
        let ours_too = ours.iter().any(|e| !only_ours(&e.message));
        refused += usize::from(ours_too);
        let same_fields = theirs.iter().all(|field| ours.iter().any(|e| is_same(&e.path, field)));
        let told = server.is_none() || !theirs.is_empty();
        if ours_too != server.is_some() || !told || !same_fields {
            let message = server.map(|s| s.message).unwrap_or_default();
            wrong.push(format!("{what}\n  ours: {ours:?}\n  server: {theirs:?} {message:.300}"));
        }
    }
    println!("{refused} of {MUTATIONS} mutations are refused");
    assert!(wrong.is_empty(), "seed {seed}: {} differ\n{}", wrong.len(), wrong.join("\n"));
    assert!(refused > MUTATIONS / 3 && refused < MUTATIONS, "{refused} refused: too many or too few to tell");
}
