"""Reads an exported model as other tools do: `transformers` without torch, safetensors with numpy.

    python read_export.py MODEL_DIR [--dump DUMP.json] [--window N] [--rope-base X] [--dtype BF16] [--against DIR]

`--against` names a folder with the weights that were exported (same names, any dtype): every value
must be theirs, rounded to the dtype of the export.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import safetensors
from transformers import AutoConfig, AutoTokenizer

from dump import Findings, check_tokenizer, load

NUMPY = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16}
TORCH = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def weight_files(folder):
    """The files of the weights, by the index when there is one."""
    index = folder / "model.safetensors.index.json"
    if index.exists():
        return sorted(set(json.loads(index.read_text())["weight_map"].values()))
    return ["model.safetensors"]


def tensors(folder):
    """name → (dtype, array in the file's own type; bf16 as its 16 bits)."""
    found = {}
    for name in weight_files(folder):
        for key, entry in safetensors.deserialize((folder / name).read_bytes()):
            array = np.frombuffer(entry["data"], dtype=NUMPY[entry["dtype"]]).reshape(entry["shape"])
            found[key] = (entry["dtype"], array)
    return found


def as_f32(dtype, array):
    return (array.astype(np.uint32) << 16).view(np.float32) if dtype == "BF16" else array.astype(np.float32)


def rounded(array, dtype):
    """f32 values as the bits of `dtype`; bf16 by round to nearest even."""
    if dtype != "BF16":
        return array.astype(NUMPY[dtype])
    bits = np.ascontiguousarray(array, dtype=np.float32).view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def expected_shapes(config):
    """Names and shapes of a Llama by its config alone."""
    hidden, ffn, vocab = config.hidden_size, config.intermediate_size, config.vocab_size
    head = config.head_dim
    q, kv = config.num_attention_heads * head, config.num_key_value_heads * head
    shapes = {"model.embed_tokens.weight": [vocab, hidden], "model.norm.weight": [hidden]}
    if not config.tie_word_embeddings:
        shapes["lm_head.weight"] = [vocab, hidden]
    layer = {
        "self_attn.q_proj": [q, hidden], "self_attn.k_proj": [kv, hidden], "self_attn.v_proj": [kv, hidden],
        "self_attn.o_proj": [hidden, q], "mlp.gate_proj": [ffn, hidden], "mlp.up_proj": [ffn, hidden],
        "mlp.down_proj": [hidden, ffn], "input_layernorm": [hidden], "post_attention_layernorm": [hidden],
    }
    for i in range(config.num_hidden_layers):
        shapes |= {f"model.layers.{i}.{name}.weight": shape for name, shape in layer.items()}
    return shapes


def check_config(findings, folder, config, options):
    raw = json.loads((folder / "config.json").read_text())
    rope = config.rope_parameters
    findings.check(raw["rope_theta"] == rope["rope_theta"],
                   f"config.json: rope_theta {raw['rope_theta']} is not what transformers uses, {rope['rope_theta']}")
    if options.window:
        tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
        findings.check(config.max_position_embeddings == options.window,
                       f"config.json: max_position_embeddings {config.max_position_embeddings}, expected {options.window}")
        findings.check(tokenizer["model_max_length"] == options.window,
                       f"tokenizer_config.json: model_max_length {tokenizer['model_max_length']}, expected {options.window}")
    if options.rope_base:
        findings.check(rope["rope_theta"] == options.rope_base, f"RoPE base {rope['rope_theta']}, expected {options.rope_base}")


def check_weights(findings, folder, config, options):
    found, shapes = tensors(folder), expected_shapes(config)
    findings.check(sorted(found) == sorted(shapes), f"tensor names: {sorted(set(found) ^ set(shapes))[:6]} only on one side")
    against = tensors(options.against) if options.against else None
    for name, (dtype, array) in found.items():
        findings.check(list(array.shape) == shapes.get(name), f"{name}: shape {list(array.shape)}, expected {shapes.get(name)}")
        findings.check(str(config.dtype).removeprefix("torch.") == TORCH[dtype], f"{name}: {dtype}, but config.json says {config.dtype}")
        findings.check(options.dtype in (None, dtype), f"{name}: {dtype}, expected {options.dtype}")
        findings.check(bool(np.isfinite(as_f32(dtype, array)).all()), f"{name}: holds values that are not finite")
        if against is not None:
            if name not in against:
                findings.check(False, f"{name}: not in {options.against}")
                continue
            same = np.array_equal(rounded(as_f32(*against[name]), dtype), array)
            findings.check(same, f"{name}: values are not those of {options.against} in {dtype}")


def check_tokenizer_files(findings, folder, tokenizer, config):
    special = json.loads((folder / "special_tokens_map.json").read_text())
    for name in ("bos_token", "eos_token", "pad_token"):
        entry = special.get(name)
        text = entry["content"] if isinstance(entry, dict) else entry
        findings.check(getattr(tokenizer, name) == text, f"{name}: {getattr(tokenizer, name)!r}, special_tokens_map.json has {text!r}")
    generation = json.loads((folder / "generation_config.json").read_text())
    findings.check(generation.get("eos_token_id") == config.eos_token_id, "generation_config.json: another eos_token_id than config.json")
    findings.check(len(tokenizer) <= config.vocab_size, f"{len(tokenizer)} tokens, but {config.vocab_size} rows of the embedding")
    findings.check(bool(tokenizer.chat_template), "no chat template")


def main():
    parser = argparse.ArgumentParser(description="Read an exported model without torch.")
    parser.add_argument("model", type=Path)
    parser.add_argument("--dump", type=Path)
    parser.add_argument("--window", type=int)
    parser.add_argument("--rope-base", type=float)
    parser.add_argument("--dtype", choices=sorted(NUMPY))
    parser.add_argument("--against", type=Path)
    options = parser.parse_args()
    findings = Findings()
    config = AutoConfig.from_pretrained(options.model)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    check_config(findings, options.model, config, options)
    check_tokenizer_files(findings, options.model, tokenizer, config)
    check_weights(findings, options.model, config, options)
    if options.dump:
        check_tokenizer(findings, load(options.dump), tokenizer)
    findings.report(f"read_export {options.model}")


if __name__ == "__main__":
    main()
