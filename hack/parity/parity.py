"""Compares a model as we compute it with the same folder in `transformers` and torch.

    python parity.py MODEL_DIR DUMP.json

Losses and log-probabilities within 1e-4 (absolute, f32), mean losses within 1e-5, ids equal.
Pinned in ../fixtures/requirements.txt.
"""

import argparse
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from dump import Findings, check_tokenizer, load

TOKEN, MEAN = 1e-4, 1e-5


def check_row(findings, model, number, row):
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([row["tokens"]]), use_cache=False).logits[0].float()
    logs = torch.log_softmax(logits, dim=-1)
    theirs = -logs[:-1].gather(1, torch.tensor(row["tokens"][1:])[:, None])[:, 0]
    ours = torch.tensor(row["nll"])
    findings.check(ours.shape == theirs.shape, f"row {number}: {ours.shape[0]} losses for {theirs.shape[0]} targets")
    if ours.shape == theirs.shape:
        apart = (ours - theirs).abs()
        findings.check(apart.max().item() <= TOKEN, f"row {number}: loss at token {apart.argmax().item()} is {apart.max().item():.2e} off")
        mean = abs(ours.double().mean() - theirs.double().mean()).item()
        findings.check(mean <= MEAN, f"row {number}: mean loss is {mean:.2e} off")
        print(f"row {number}: {len(row['tokens'])} tokens, mean loss {theirs.double().mean().item():.6f}, "
              f"largest difference {apart.max().item():.2e}, of the mean {mean:.2e}")
    for entry in row["next"]:
        apart = abs(logs[-1, entry["id"]].item() - entry["logProbability"])
        findings.check(apart <= TOKEN, f"row {number}: log p of token {entry['id']} after the row is {apart:.2e} off")


def main():
    parser = argparse.ArgumentParser(description="Compare a model with transformers.")
    parser.add_argument("model", type=Path)
    parser.add_argument("dump", type=Path)
    options = parser.parse_args()
    findings, dump = Findings(), load(options.dump)
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32, attn_implementation="eager").eval()
    check_tokenizer(findings, dump, AutoTokenizer.from_pretrained(options.model))
    for number, row in enumerate(dump["rows"]):
        check_row(findings, model, number, row)
    findings.report(f"parity {options.model}")


if __name__ == "__main__":
    main()
