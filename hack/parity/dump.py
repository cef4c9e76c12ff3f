"""The dump that our binary makes of an exported model: what `read_export.py` and `parity.py` compare.

`cargo run -p longstrap-evaluation --example parity_dump -- MODEL_DIR DUMP.json` writes

    {"texts": [{"text": "…", "ids": […]}],                                     plain text, no control tokens
     "chats": [{"messages": […], "addGenerationPrompt": false, "ids": […]}],
     "rows":  [{"tokens": […], "nll": […], "next": [{"id": 5, "logProbability": -1.5}, …],
                "logits": [{"position": 127, "values": […]}, …]}]}

`nll[i]` is −log p of `tokens[i + 1]`; `next` holds log-probabilities of tokens after the whole row;
`logits` holds the whole vocabulary's at some positions, in f32.
"""

import json
import sys
from pathlib import Path


class Findings:
    """Collects what differs, so that one run tells everything."""

    def __init__(self):
        self.checked, self.wrong = 0, []

    def check(self, holds, message):
        self.checked += 1
        if not holds:
            self.wrong.append(message)

    def report(self, what):
        for message in self.wrong[:20]:
            print(f"{what}: {message}", file=sys.stderr)
        if self.wrong or not self.checked:
            sys.exit(f"{what}: {len(self.wrong)} of {self.checked} checks failed")
        print(f"{what}: {self.checked} checks hold")


def load(path):
    return json.loads(Path(path).read_text(encoding="utf-8"))


def difference(ours, theirs):
    """Where two lists of ids part, in words; None when they are equal."""
    if ours == theirs:
        return None
    at = next((i for i, (a, b) in enumerate(zip(ours, theirs)) if a != b), min(len(ours), len(theirs)))
    return f"differ at token {at}: ours {ours[at:at + 5]}, theirs {theirs[at:at + 5]} (lengths {len(ours)}, {len(theirs)})"


def check_tokenizer(findings, dump, tokenizer):
    """Plain text and chats must have the same ids in `transformers`."""
    for case in dump["texts"]:
        found = difference(case["ids"], tokenizer.encode(case["text"], add_special_tokens=False))
        findings.check(found is None, f"the text {case['text'][:40]!r}: ids {found}")
        findings.check(tokenizer.decode(case["ids"], clean_up_tokenization_spaces=False) == case["text"],
                       f"the text {case['text'][:40]!r} does not come back from its ids")
    for case in dump["chats"]:
        ids = tokenizer.apply_chat_template(case["messages"], add_generation_prompt=case["addGenerationPrompt"],
                                            tokenize=True, return_dict=False)
        found = difference(case["ids"], list(ids))
        findings.check(found is None, f"the chat {case['messages'][0]['content'][:40]!r}: ids {found}")
