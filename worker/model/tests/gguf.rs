//! GGUF import on a tiny file written here: what is read, and one clear error for each way in
//! which a file can be unusable.
#![allow(clippy::unwrap_used)]

use std::path::Path;

use longstrap_model::{Dtype, ModelConfig, Weights, check_hf, import_gguf};

const HIDDEN: usize = 32;
const HEADS: usize = 2;

/// A GGUF file in the making; every field can be spoilt before it is written.
struct File {
    architecture: &'static str,
    pre: &'static str,
    bias: bool,
    tensors: Vec<(String, Vec<usize>, u32, Vec<u8>)>,
}

impl File {
    /// One layer, 2 heads of 16, 1 KV head, f32, values counted up so that every row differs.
    fn tiny() -> Self {
        let mut counter = 0u32;
        let mut tensor = |name: &str, shape: &[usize]| {
            let bytes = (0..shape.iter().product())
                .flat_map(|_| {
                    counter += 1;
                    (counter as f32).to_le_bytes()
                })
                .collect();
            (name.to_owned(), shape.to_vec(), 0, bytes)
        };
        let tensors = vec![
            tensor("token_embd.weight", &[vocabulary().len(), HIDDEN]),
            tensor("blk.0.attn_norm.weight", &[HIDDEN]),
            tensor("blk.0.attn_q.weight", &[32, HIDDEN]),
            tensor("blk.0.attn_k.weight", &[16, HIDDEN]),
            tensor("blk.0.attn_v.weight", &[16, HIDDEN]),
            tensor("blk.0.attn_output.weight", &[HIDDEN, 32]),
            tensor("blk.0.ffn_norm.weight", &[HIDDEN]),
            tensor("blk.0.ffn_gate.weight", &[64, HIDDEN]),
            tensor("blk.0.ffn_up.weight", &[64, HIDDEN]),
            tensor("blk.0.ffn_down.weight", &[HIDDEN, 64]),
            tensor("output_norm.weight", &[HIDDEN]),
        ];
        Self { architecture: "llama", pre: "smollm", bias: false, tensors }
    }

    fn bytes(&self) -> Vec<u8> {
        let mut meta: Vec<(String, Vec<u8>)> = Vec::new();
        let mut put = |key: &str, kind: u32, value: Vec<u8>| {
            let mut bytes = text(key);
            bytes.extend(kind.to_le_bytes());
            bytes.extend(value);
            meta.push((key.to_owned(), bytes));
        };
        put("general.architecture", 8, text(self.architecture));
        for (key, n) in [
            ("block_count", 1u32),
            ("context_length", 64),
            ("embedding_length", HIDDEN as u32),
            ("feed_forward_length", 64),
            ("attention.head_count", HEADS as u32),
            ("attention.head_count_kv", 1),
        ] {
            put(&format!("llama.{key}"), 4, n.to_le_bytes().to_vec());
        }
        put("llama.attention.layer_norm_rms_epsilon", 6, 1e-5f32.to_le_bytes().to_vec());
        put("tokenizer.ggml.model", 8, text("gpt2"));
        put("tokenizer.ggml.pre", 8, text(self.pre));
        put("tokenizer.ggml.add_bos_token", 7, vec![u8::from(self.bias)]);
        put("tokenizer.ggml.tokens", 9, array(8, vocabulary().iter().map(|t| text(t)).collect()));
        let kinds = (0..vocabulary().len()).map(|i| if i == 0 { 3i32 } else { 1 }.to_le_bytes().to_vec());
        put("tokenizer.ggml.token_type", 9, array(5, kinds.collect()));
        put("tokenizer.ggml.merges", 9, array(8, vec![text("a b")]));
        put("tokenizer.ggml.eos_token_id", 4, 0u32.to_le_bytes().to_vec());

        let mut out = b"GGUF".to_vec();
        out.extend(3u32.to_le_bytes());
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((meta.len() as u64).to_le_bytes());
        out.extend(meta.into_iter().flat_map(|(_, bytes)| bytes));
        let mut offset = 0u64;
        for (name, shape, kind, bytes) in &self.tensors {
            out.extend(text(name));
            out.extend((shape.len() as u32).to_le_bytes());
            out.extend(shape.iter().rev().flat_map(|&d| (d as u64).to_le_bytes()));
            out.extend(kind.to_le_bytes());
            out.extend(offset.to_le_bytes());
            offset += bytes.len() as u64;
        }
        out.resize(out.len().next_multiple_of(32), 0);
        out.extend(self.tensors.iter().flat_map(|(.., bytes)| bytes));
        out
    }

    fn import(&self, cut: usize) -> Result<std::path::PathBuf, String> {
        let dir = tempfile::tempdir().unwrap().keep();
        let mut bytes = self.bytes();
        bytes.truncate(bytes.len() - cut);
        std::fs::write(dir.join("tiny.gguf"), bytes).unwrap();
        let out = dir.join("model");
        match import_gguf(&dir.join("tiny.gguf"), &out, Dtype::F32, |_, _| {}) {
            Ok(_) => Ok(out),
            Err(e) => {
                let left: Vec<_> = std::fs::read_dir(&dir).unwrap().map(|e| e.unwrap().file_name()).collect();
                assert_eq!(left, ["tiny.gguf"], "a failed import leaves nothing");
                std::fs::remove_dir_all(&dir).unwrap();
                Err(e.to_string())
            }
        }
    }
}

fn vocabulary() -> Vec<String> {
    ["<|end|>", "a", "b", "ab", "c", "!"].map(String::from).to_vec()
}

fn text(s: &str) -> Vec<u8> {
    [&(s.len() as u64).to_le_bytes()[..], s.as_bytes()].concat()
}

fn array(kind: u32, items: Vec<Vec<u8>>) -> Vec<u8> {
    let mut out = kind.to_le_bytes().to_vec();
    out.extend((items.len() as u64).to_le_bytes());
    out.extend(items.concat());
    out
}

#[test]
fn imports_a_tiny_file_and_undoes_the_permutation() {
    let out = File::tiny().import(0).unwrap();
    let checked = check_hf(&out).unwrap();
    assert_eq!((checked.config.head_dim, checked.tokens), (16, 6));
    let weights = Weights::open(&out).unwrap();
    let original = |name: &str| -> Vec<f32> {
        let tensors = File::tiny().tensors;
        let (.., bytes) = tensors.iter().find(|(n, ..)| n == name).unwrap();
        bytes.chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
    };
    // Row 2i of a head in the file is row i of the head's first half, row 2i+1 of its second.
    let file = original("blk.0.attn_q.weight");
    let ours = weights.tensor_f32("model.layers.0.self_attn.q_proj.weight").unwrap();
    for head in 0..HEADS {
        for i in 0..8 {
            for half in 0..2 {
                let (from, to) = (head * 16 + 2 * i + half, head * 16 + half * 8 + i);
                assert_eq!(file[from * HIDDEN..][..HIDDEN], ours[to * HIDDEN..][..HIDDEN]);
            }
        }
    }
    assert_eq!(
        weights.tensor_f32("model.layers.0.self_attn.v_proj.weight").unwrap(),
        original("blk.0.attn_v.weight")
    );
    std::fs::remove_dir_all(out.parent().unwrap()).unwrap();
}

#[test]
fn what_is_not_read_is_refused_by_name() {
    type Spoil = fn(&mut File);
    let cases: [(Spoil, usize, &[&str]); 10] = [
        (|f| f.architecture = "qwen2", 0, &["general.architecture", "qwen2"]),
        (|f| f.pre = "llama-bpe", 0, &["tokenizer.ggml.pre", "llama-bpe"]),
        (|f| f.bias = true, 0, &["add_bos_token"]),
        (|f| f.tensors[2].2 = 12, 0, &["blk.0.attn_q.weight", "Q4_K"]),
        (|f| f.tensors.push(("rope_freqs.weight".into(), vec![1], 0, vec![0; 4])), 0, &["rope_freqs.weight"]),
        (
            |f| f.tensors.push(("blk.0.attn_q.bias".into(), vec![1], 0, vec![0; 4])),
            0,
            &["blk.0.attn_q.bias", "biases"],
        ),
        (|f| f.tensors[4].1 = vec![8, 64], 0, &["blk.0.attn_v.weight", "[8, 64]", "[16, 32]"]),
        (|f| drop(f.tensors.pop()), 0, &["output_norm.weight", "missing"]),
        (|_| (), 4, &["output_norm.weight", "truncated"]),
        (|_| (), File::tiny().bytes().len() - 40, &["truncated"]),
    ];
    for (i, (spoil, cut, words)) in cases.into_iter().enumerate() {
        let mut file = File::tiny();
        spoil(&mut file);
        let error = file.import(cut).unwrap_err();
        for word in words {
            assert!(error.contains(word), "case {i}: {word:?} is not in: {error}");
        }
    }
}

#[test]
fn a_folder_with_other_content_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("tiny.gguf");
    std::fs::write(&file, File::tiny().bytes()).unwrap();
    let precious = dir.path().join("model/precious.txt");
    std::fs::create_dir(dir.path().join("model")).unwrap();
    std::fs::write(&precious, "mine").unwrap();
    let error = import_gguf(&file, precious.parent().unwrap(), Dtype::F32, |_, _| {}).unwrap_err();
    assert!(error.to_string().contains("name another folder"), "{error}");
    assert!(Path::new(&precious).exists());
    // What a killed import left behind is replaced.
    let out = dir.path().join("second");
    std::fs::create_dir(dir.path().join(".second.partial")).unwrap();
    std::fs::write(dir.path().join(".second.partial/model.safetensors"), "torn").unwrap();
    assert!(!import_gguf(&file, &out, Dtype::BF16, |_, _| {}).unwrap().reused);
    assert!(import_gguf(&file, &out, Dtype::BF16, |_, _| {}).unwrap().reused);
    assert_eq!(ModelConfig::load(&out).unwrap().dtype, Dtype::BF16);
}
