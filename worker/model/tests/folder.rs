//! Model folders: both forms of the configuration, frequencies, export, bad input, and templates
//! whose loss spans are easy to get wrong.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use longstrap_model::{
    ChatTemplate, Dtype, Export, LossOn, MAX_SHARD_BYTES, Message, ModelConfig, Role, SpecialTokens,
    Tokenizer, Weights, check_hf, export,
};
use serde_json::{Value, json};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../hack/fixtures/data").join(name)
}

fn smoke() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/smoke/model")
}

fn json_file(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

#[test]
fn both_forms_of_the_configuration_are_one_model() {
    for model in ["llama3", "smollm2"] {
        let old = ModelConfig::load(&fixture(model)).unwrap();
        let file = fixture(model).join("config.rope_parameters.json");
        let new = ModelConfig::from_json(json_file(&file), "new").unwrap();
        assert_eq!(old.rope, new.rope, "{model}");
        assert_eq!((old.head_dim, old.dtype), (new.head_dim, new.dtype), "{model}");
        // Written back, either form says the new base in both places, and nothing else changes.
        for config in [old, new] {
            let theta = config.rope.theta * 4.0;
            let out = config.extended(4096, theta).to_json(Dtype::BF16);
            assert_eq!(out["rope_theta"], json!(theta));
            assert_eq!(out["rope_parameters"]["rope_theta"], json!(theta));
            assert_eq!(out["max_position_embeddings"], 4096);
            assert_eq!(out["rms_norm_eps"], 1e-5);
            let mut without = out.clone();
            without.as_object_mut().unwrap().remove("rope_parameters");
            let (both, old_only) = (ModelConfig::from_json(out, "a"), ModelConfig::from_json(without, "b"));
            assert_eq!(both.as_ref().unwrap().rope, old_only.unwrap().rope, "{model}");
            assert_eq!(both.unwrap().dtype, Dtype::BF16);
        }
    }
}

#[test]
fn frequencies_are_those_of_transformers() {
    for model in ["llama3", "smollm2"] {
        let config = ModelConfig::load(&fixture(model)).unwrap();
        let reference = json_file(&fixture(model).join("reference.json"));
        for (field, factor) in [("inv_freq", 1.0), ("inv_freq_rope_base_x4", 4.0)] {
            let rope = config.extended(1, config.rope.theta * factor).rope;
            let expected: Vec<f32> = serde_json::from_value(reference[field].clone()).unwrap();
            let ours = rope.inverse_frequencies(config.head_dim);
            assert_eq!(ours.len(), expected.len());
            for (a, b) in ours.iter().zip(&expected) {
                // torch's vectorised power may differ in the last bit.
                assert!((a - b).abs() <= b * f32::EPSILON, "{model} {field}: {a} {b}");
            }
        }
    }
}

#[test]
fn what_would_be_computed_wrongly_is_refused_by_name() {
    let base = json_file(&fixture("smollm2").join("config.json"));
    let cases = [
        ("architectures", json!(["Qwen3ForCausalLM"]), "Qwen3ForCausalLM"),
        ("sliding_window", json!(4096), "sliding_window"),
        ("attention_bias", json!(true), "attention_bias"),
        ("mlp_bias", json!(true), "mlp_bias"),
        ("rope_scaling", json!({"rope_type": "yarn", "factor": 4.0}), "yarn"),
        ("rope_scaling", json!({"type": "linear", "factor": 4.0}), "linear"),
        ("rope_parameters", json!({"rope_type": "dynamic", "rope_theta": 1e4}), "dynamic"),
        ("rope_scaling", json!({"rope_type": "llama3", "factor": 8.0}), "rope_scaling.low_freq_factor"),
        ("hidden_act", json!("gelu"), "hidden_act"),
        ("hidden_size", json!("wide"), "hidden_size"),
        ("vocab_size", json!(null), "vocab_size is missing"),
        ("num_key_value_heads", json!(4), "does not divide"),
        ("torch_dtype", json!("float8_e4m3fn"), "float8"),
        ("quantization_config", json!({"bits": 4}), "quantization_config"),
    ];
    for (field, value, word) in cases {
        let mut config = base.clone();
        config[field] = value;
        let error = ModelConfig::from_json(config, "config.json").unwrap_err().to_string();
        assert!(error.starts_with("config.json: ") && error.contains(word), "{field}: {error}");
    }
}

#[test]
fn export_reads_back_and_repeats_to_the_byte() {
    let dir = tempfile::tempdir().unwrap();
    let source = smoke();
    let config = ModelConfig::load(&source).unwrap();
    let weights = Weights::open(&source).unwrap();
    let extended = config.extended(1024, 40_000.0);
    let write = |name: &str, dtype, max_shard_bytes| {
        let what = Export { config: &extended, source: &source, dtype, max_shard_bytes };
        let out = dir.path().join(name);
        (export(&what, &out, |spec, values| weights.copy_f32(&spec.name, values)).unwrap(), out)
    };
    let (one, whole) = write("one", Dtype::F32, MAX_SHARD_BYTES);
    let (two, _) = write("two", Dtype::F32, MAX_SHARD_BYTES);
    assert_eq!(one, two);
    let (files, sharded) = write("sharded", Dtype::BF16, 100_000);
    assert!(files.iter().any(|f| f.name.starts_with("model-00002-of-")), "{files:?}");
    for (out, dtype, error) in [(&whole, Dtype::F32, 0.0), (&sharded, Dtype::BF16, 1.0 / 256.0)] {
        let checked = check_hf(out).unwrap();
        assert_eq!((checked.dtype, checked.config.max_position_embeddings), (dtype, 1024));
        assert_eq!(checked.config.rope.theta, 40_000.0);
        assert_eq!(json_file(&out.join("tokenizer_config.json"))["model_max_length"], 1024);
        let read = Weights::open(out).unwrap();
        for spec in config.tensors() {
            let (a, b) = (weights.tensor_f32(&spec.name).unwrap(), read.tensor_f32(&spec.name).unwrap());
            assert!(a.iter().zip(&b).all(|(a, b)| (a - b).abs() <= a.abs() * error), "{}", spec.name);
        }
    }
    assert_eq!(
        std::fs::read(whole.join("tokenizer.json")).unwrap(),
        std::fs::read(source.join("tokenizer.json")).unwrap()
    );
    // A stale block of the newer form would win silently over the fields that were changed.
    assert_eq!(json_file(&whole.join("config.json"))["rope_parameters"]["rope_theta"], 40_000.0);
}

#[test]
fn a_broken_folder_gives_one_clear_error() {
    type Break = fn(&Path);
    let cases: [(Break, &[&str]); 6] = [
        (
            |d| {
                let bytes = std::fs::read(d.join("model.safetensors")).unwrap();
                std::fs::write(d.join("model.safetensors"), &bytes[..bytes.len() - 100]).unwrap();
            },
            &["model.safetensors", "truncated"],
        ),
        (|d| std::fs::remove_file(d.join("model.safetensors")).unwrap(), &["model.safetensors.index.json"]),
        (|d| change(d, "vocab_size", |v| v - 1), &["embed_tokens", "shape", "config.json"]),
        (|d| change(d, "num_hidden_layers", |v| v + 1), &["model.layers.", "is missing"]),
        (|d| change(d, "num_hidden_layers", |v| v - 1), &["model.layers.", "does not belong"]),
        (|d| std::fs::write(d.join("tokenizer.json"), "{").unwrap(), &["tokenizer.json"]),
    ];
    for (i, (spoil, words)) in cases.into_iter().enumerate() {
        let dir = tempfile::tempdir().unwrap();
        for entry in std::fs::read_dir(smoke()).unwrap() {
            let entry = entry.unwrap();
            std::fs::copy(entry.path(), dir.path().join(entry.file_name())).unwrap();
        }
        check_hf(dir.path()).unwrap();
        spoil(dir.path());
        let error = check_hf(dir.path()).unwrap_err().to_string();
        for word in words {
            assert!(error.contains(word), "case {i}: {word:?} is not in: {error}");
        }
    }
}

fn change(dir: &Path, field: &str, f: fn(u64) -> u64) {
    let path = dir.join("config.json");
    let mut value = json_file(&path);
    value[field] = json!(f(value[field].as_u64().unwrap()));
    std::fs::write(path, value.to_string()).unwrap();
}

#[test]
fn ids_beyond_the_embedding_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(smoke()).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), dir.path().join(entry.file_name())).unwrap();
    }
    let path = dir.path().join("tokenizer.json");
    let mut value = json_file(&path);
    let id = value["model"]["vocab"].as_object().unwrap().len() as u64 + 100_000;
    value["added_tokens"].as_array_mut().unwrap().push(json!({"id": id, "content": "<|far|>",
        "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true}));
    std::fs::write(path, value.to_string()).unwrap();
    let result = check_hf(dir.path());
    // The library numbers added tokens after the vocabulary; the smoke model's embedding is full.
    let error = result.unwrap_err().to_string();
    assert!(error.contains("ids up to") && error.contains("rows"), "{error}");
}

/// The text of ids as the library gives it, control tokens included.
fn decode_markup(tokenizer: &Tokenizer, ids: &[u32]) -> String {
    tokenizers::Tokenizer::from_bytes(tokenizer.json()).unwrap().decode(ids, false).unwrap()
}

/// A byte-level tokenizer: one token a byte, but " a" is one token; control tokens, and a tool
/// marker that is not called special.
fn bytes_tokenizer() -> Tokenizer {
    let mut vocab = serde_json::Map::new();
    let controls = ["<s>", "</s>", "<tool>", "<h>"];
    for c in controls {
        vocab.insert(c.into(), json!(vocab.len()));
    }
    for c in ('!'..='~').chain(['Ġ', 'Ċ', 'Ã', '©', 'ĉ']).map(String::from).chain(["Ġa".into()]) {
        vocab.insert(c, json!(vocab.len()));
    }
    let added: Vec<Value> = controls
        .iter()
        .enumerate()
        .map(|(id, text)| {
            json!({"id": id, "content": text, "single_word": false, "lstrip": false, "rstrip": false,
                   "normalized": false, "special": *text != "<tool>"})
        })
        .collect();
    let byte_level =
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    let value = json!({"version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
        "pre_tokenizer": byte_level, "post_processor": null, "decoder": byte_level,
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "vocab": vocab, "merges": [["Ġ", "a"]]}});
    Tokenizer::from_json(value.to_string().into_bytes()).unwrap()
}

#[test]
fn loss_spans_follow_the_template() {
    let tokenizer = bytes_tokenizer();
    let special = SpecialTokens { bos: Some("<s>".into()), eos: Some("</s>".into()), ..Default::default() };
    let chat = |q: &str, a: &str| [Message::new(Role::User, q), Message::new(Role::Assistant, a)];
    // Template, question, answer, whole text, what is learned.
    let cases = [
        (
            "{% for m in messages %}<h>{{ m.role }}\n{{ m.content }}</s>\n{% endfor %}",
            "Why <tool></s>?",
            " é <s>",
            "<h>user\nWhy <tool></s>?</s>\n<h>assistant\n é <s></s>\n",
            " é <s></s>",
        ),
        // Llama 3's trims; Llama 2's puts a space before the end token.
        (
            "{% for m in messages %}<h>{{ m['content'] | trim }}</s>{% endfor %}",
            "q",
            "\n a\n",
            "<h>q</s><h>a</s>",
            "a</s>",
        ),
        (
            "{% for m in messages %}{% if m.role == 'user' %}[{{ m.content.strip() }}]{% else %}\
             {% generation %}{{ ' ' + m.content + ' ' + eos_token }}{% endgeneration %}{% endif %}{% endfor %}",
            "q",
            "a",
            "[q] a </s>",
            " a </s>",
        ),
        // Block tags on lines of their own leave no trace; tojson escapes nothing.
        (
            "{%- for m in messages %}\n  {% if m.role == 'user' %}\n{{ m.content | tojson }}\n  {% else %}\n{{ m.content }}<h>{{ strftime_now('%d %b %Y') }}\n  {% endif %}\n{%- endfor %}\n",
            "<b>&'\"",
            "a",
            "\"<b>&'\\\"\"\na<h>26 Jul 2024\n",
            "a<h>",
        ),
    ];
    for (template, q, a, text, learned) in cases {
        let t = ChatTemplate::new(template, special.clone()).unwrap();
        let r = t.render(&tokenizer, &chat(q, a)).unwrap();
        assert_eq!(r.text, text, "{template}");
        let spans = r.spans(LossOn::Response);
        assert_eq!(spans.len(), 1, "{template}");
        assert_eq!(decode_markup(&tokenizer, &r.ids[spans[0].clone()]), learned, "{template}");
        let answer = r.turns.last().unwrap();
        assert_eq!(r.text[answer.text.clone()].trim(), a.trim(), "{template}");
        assert!(r.ids.len() == r.offsets.len() && r.offsets.last().unwrap().end == r.text.len());
    }
    let refusing = ChatTemplate::new("{{ raise_exception('no system message') }}", special.clone()).unwrap();
    let error = refusing.render(&tokenizer, &chat("q", "a")).unwrap_err().to_string();
    assert!(error.contains("no system message"), "{error}");
    let dropping = ChatTemplate::new("{{ messages[0].content }}", special.clone()).unwrap();
    let error = dropping.render(&tokenizer, &chat("q", "a")).unwrap_err().to_string();
    assert!(error.contains("assistant"), "{error}");
    assert!(ChatTemplate::new("{% if %}", special).unwrap_err().to_string().contains("line 1"));
}

#[test]
fn a_model_without_a_template_gets_a_plain_one() {
    let tokenizer = bytes_tokenizer();
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("tokenizer_config.json"), r#"{"eos_token": {"content": "</s>"}}"#)
        .unwrap();
    let t = ChatTemplate::load(dir.path(), &tokenizer).unwrap();
    let turns = [Message::new(Role::User, "read"), Message::new(Role::Assistant, "say")];
    let r = t.render(&tokenizer, &turns).unwrap();
    assert_eq!(r.text, "read\n\nsay</s>");
    assert_eq!(decode_markup(&tokenizer, &r.ids[r.spans(LossOn::Response)[0].clone()]), "say</s>");
    assert_eq!(t.prompt(&tokenizer, &turns[..1], "I s").unwrap().text, "read\n\nI s");
    // A control string in a document is text.
    assert_eq!(tokenizer.encode_ordinary("<tool>a").unwrap().len(), 7);
}
