//! Objects made at random from the schema that the API server has: whatever passes it can be planned.

use longstrap_crds::{crd, parse};

use super::*;

/// Objects of each kind.
const OBJECTS: u64 = 24;

/// Numbers that a seed decides (xorshift64*).
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) % n
    }

    fn one_of<T: Clone>(&mut self, all: &[T]) -> T {
        all[self.below(all.len() as u64) as usize].clone()
    }

    /// A value of a schema; `name` is the field's.
    fn value(&mut self, schema: &Value, name: &str) -> Value {
        if let Some(options) = schema["enum"].as_array() {
            return self.one_of(options);
        }
        if schema["x-kubernetes-int-or-string"] == true {
            return self.one_of(&[json!(4096), json!("16Ki")]);
        }
        // Bounds of integers are written as floats.
        let bound = |key: &str, other: u64| schema[key].as_f64().map_or(other, |bound| bound as u64);
        match schema["type"].as_str().unwrap_or_default() {
            "boolean" => json!(self.below(2) == 1),
            "integer" => {
                let (min, max) = (bound("minimum", 0), bound("maximum", 1 << 40));
                let between = min + self.below((max - min).min(9) + 1);
                json!(self.one_of(&[min, between, between, max]))
            }
            "string" => {
                let pattern = schema["pattern"].as_str().unwrap_or_default();
                let label = format!("n{}", self.below(3));
                match pattern {
                    "" if name == "image" => json!("registry/worker@sha256:0"),
                    "" => json!("x".repeat(self.one_of(&[1, bound("maxLength", 9).min(300) as usize]))),
                    p if p.contains("s3|") => {
                        json!(self.one_of(&[format!("s3://b/{label}"), format!("file:///data/{label}")]))
                    }
                    p if p.contains("https?") => json!(format!("http://{label}/v1")),
                    p if p.contains("eE") => json!("2e-5"),
                    _ => json!(label),
                }
            }
            "array" => {
                let least = bound("minItems", 0);
                let n = least + self.below((bound("maxItems", 3) - least).min(3) + 1);
                let items = (0..n).map(|i| {
                    let mut item = self.value(&schema["items"], "");
                    if let Some(key) = schema["x-kubernetes-list-map-keys"][0].as_str() {
                        item[key] = json!(format!("n{i}"));
                    }
                    item
                });
                items.collect()
            }
            _ => {
                let required = schema["required"].as_array().cloned().unwrap_or_default();
                let mut object = serde_json::Map::new();
                for (key, schema) in schema["properties"].as_object().into_iter().flatten() {
                    if required.contains(&json!(key)) || self.below(3) > 0 {
                        object.insert(key.clone(), self.value(schema, key));
                    }
                }
                if schema["additionalProperties"].is_object() && self.below(2) == 1 {
                    object.insert("a/key".to_owned(), self.value(&schema["additionalProperties"], ""));
                }
                // Fields that the schema does not look into may hold anything.
                if schema["x-kubernetes-preserve-unknown-fields"] == true && self.below(3) == 0 {
                    let field = self.one_of(&["aFieldOfTheFuture", "affinity", "resources", "volumeMounts"]);
                    let what = self.one_of(&[
                        json!("x"),
                        json!(7),
                        json!([[], {"deep": {}}]),
                        json!({"limits": []}),
                    ]);
                    object.insert(field.to_owned(), what);
                }
                Value::Object(object)
            }
        }
    }
}

/// Takes out what the rules forbid, so that most objects pass.
fn mend(spec: &mut Value) {
    let keep_one = |value: &mut Value, all: &[&str]| {
        let there: Vec<&str> = all.iter().copied().filter(|key| !value[*key].is_null()).collect();
        there.iter().skip(1).for_each(|key| {
            value.as_object_mut().unwrap().shift_remove(*key);
        });
    };
    keep_one(&mut spec["generator"], &["embedded", "endpoints"]);
    for source in spec["data"].as_array_mut().into_iter().flatten() {
        keep_one(source, &["uri", "synthesisJobRef"]);
    }
    let lengths = spec.pointer_mut("/samples/longInput/lengths").and_then(Value::as_array_mut);
    for length in lengths.into_iter().flatten() {
        *length = json!({"name": length["name"], "tokens": 4096});
    }
    spec["managedBy"] = json!(MANAGED_BY);
    let mut templates = vec![spec["podTemplate"].take()];
    for (i, stage) in spec["stages"].as_array_mut().into_iter().flatten().enumerate() {
        stage["contextLength"] = json!(512 << i);
        templates.push(stage["podTemplate"].take());
    }
    for (i, mut template) in templates.into_iter().enumerate() {
        if let Some(pod) = template["spec"].as_object_mut() {
            ["restartPolicy", "hostname", "subdomain"].iter().for_each(|key| {
                pod.shift_remove(*key);
            });
            // The main container, every other time.
            if i % 2 == 0 && pod.get("containers").is_some_and(|c| c[0].is_object()) {
                let worker = &mut pod["containers"][0];
                *worker = json!({"name": "worker", "env": worker["env"]});
            }
        }
        match i {
            0 => spec["podTemplate"] = template,
            _ => spec["stages"][i - 1]["podTemplate"] = template,
        }
    }
    for kind in ["generator", "data", "stages", "samples"] {
        if spec[kind].is_null() {
            spec.as_object_mut().unwrap().shift_remove(kind);
        }
    }
}

#[test]
fn whatever_passes_the_schema_can_be_planned() {
    for (_, definition) in crd::all() {
        let kind = definition.spec.names.kind.clone();
        let schema = serde_json::to_value(&definition.spec.versions[0].schema).unwrap();
        let spec = &schema["openAPIV3Schema"]["properties"]["spec"];
        let mut passed = 0;
        for seed in 1..=OBJECTS {
            let mut dice = Dice(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15));
            let mut doc = json!({
                "apiVersion": longstrap_crds::API_VERSION,
                "kind": kind,
                "metadata": {"name": "any", "namespace": "ml", "uid": UID, "generation": 1},
                "spec": dice.value(spec, ""),
            });
            mend(&mut doc["spec"]);
            if let Err(errors) = parse(&doc) {
                println!("{kind}, seed {seed} does not pass: {}", errors[0]);
                continue;
            }
            passed += 1;
            println!("{kind}, seed {seed}");
            let mut sim = Sim::new(&doc);
            for i in 0..3 {
                sim.world.synthesis.insert(format!("n{i}"), other_job(Some(Phase::Complete)));
            }
            sim.settle();
            assert!(sim.tasks.values().all(|task| task.spec.common().pod_template.is_none()));
            for code in [0, 1, 10, 12] {
                sim.start();
                sim.lose(|pod| pod.metadata.uid.as_deref().unwrap().ends_with(['0', '2', '4', '6', '8']));
                sim.settle();
                sim.advance(60);
                sim.settle();
                sim.start();
                sim.end(0, code, &committed(1));
                sim.settle();
                sim.advance(60);
                sim.edit(|_| {});
                sim.settle();
            }
        }
        assert!(
            passed * 3 > OBJECTS,
            "{kind}: only {passed} of {OBJECTS} objects pass; the test tests little"
        );
    }
}
