"""Compares a row of the dump with what another implementation computed; plain lists, no torch.

Losses, log-probabilities and logits within 1e-4 (absolute, f32), mean losses within 1e-5.
"""

from math import inf, isfinite

TOKEN, MEAN, POSITIONS = 1e-4, 1e-5, 8


def furthest(ours, theirs):
    """The largest difference of two lists and its index; infinite where a number is none or missing."""
    if len(ours) != len(theirs) or not ours:
        return inf, min(len(ours), len(theirs))
    apart = [abs(a - b) for a, b in zip(ours, theirs)]
    return max((a if isfinite(a) else inf, i) for i, a in enumerate(apart))


def check_row(findings, number, row, theirs):
    """`theirs`: `nll` of every target, `next` log-probabilities by id, `logits` by position; says how far they are."""
    loss, at = furthest(row["nll"], theirs["nll"])
    findings.check(loss <= TOKEN, f"row {number}: loss at token {at} is {loss:.2e} off")
    means = [sum(nll) / max(len(nll), 1) for nll in (row["nll"], theirs["nll"])]
    findings.check(abs(means[0] - means[1]) <= MEAN, f"row {number}: mean losses {means[0]:.6f} and {means[1]:.6f}")
    for entry in row["next"]:
        apart, _ = furthest([entry["logProbability"]], [theirs["next"][entry["id"]]])
        findings.check(apart <= TOKEN, f"row {number}: log p of token {entry['id']} after the row is {apart:.2e} off")
    worst = 0.0
    positions = {entry["position"] for entry in row["logits"]}
    findings.check(len(positions) == POSITIONS, f"row {number}: logits at {len(positions)} positions, expected {POSITIONS}")
    for entry in row["logits"]:
        position, logits = entry["position"], theirs["logits"][entry["position"]]
        apart, token = furthest(entry["values"], logits)
        findings.check(apart <= TOKEN, f"row {number}: at token {position} the logit of {token} is {apart:.2e} off "
                                       f"({len(entry['values'])} logits, theirs {len(logits)})")
        worst = max(worst, apart)
    return f"mean loss {means[1]:.6f}, largest difference of a loss {loss:.2e}, of the mean {abs(means[0] - means[1]):.2e}, of a logit {worst:.2e}"
