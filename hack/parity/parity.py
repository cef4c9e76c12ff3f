"""Compares a model as we compute it with the same folder in `transformers` and torch.

    python parity.py MODEL_DIR DUMP.json

Bounds are in row.py; ids are equal. A model with RoPE frequencies a thousandth off must be seen.
Pinned in ../fixtures/requirements.txt.
"""

import argparse
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from dump import Findings, check_tokenizer, load
from row import check_row


def computed(model, row):
    """What torch makes of a row, as `row.py` compares it."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([row["tokens"]]), use_cache=False).logits[0].float()
    logs = torch.log_softmax(logits, dim=-1)
    nll = -logs[:-1].gather(1, torch.tensor(row["tokens"][1:])[:, None])[:, 0]
    positions = [entry["position"] for entry in row["logits"]]
    return {"nll": nll.tolist(), "next": logs[-1].tolist(), "logits": {p: logits[p].tolist() for p in positions}}


def main():
    parser = argparse.ArgumentParser(description="Compare a model with transformers.")
    parser.add_argument("model", type=Path)
    parser.add_argument("dump", type=Path)
    options = parser.parse_args()
    findings, broken, dump = Findings(), Findings(), load(options.dump)
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32, attn_implementation="eager").eval()
    check_tokenizer(findings, dump, AutoTokenizer.from_pretrained(options.model))
    for number, row in enumerate(dump["rows"]):
        print(f"row {number}: {len(row['tokens'])} tokens,", check_row(findings, number, row, computed(model, row)))
    model.model.rotary_emb.inv_freq *= 1.001
    for number, row in enumerate(dump["rows"]):
        check_row(broken, number, row, computed(model, row))
    findings.check(any("logit of" in message for message in broken.wrong), "a planted error of RoPE is not seen in the logits")
    findings.report(f"parity {options.model}")


if __name__ == "__main__":
    main()
