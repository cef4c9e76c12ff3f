"""Holds the figures that a part printed against its goals: goals.py PART FILE

Invariant: a part answers for each of its goals; a figure that was not printed, or is no number, is missed.
"""

import math
import sys

# part: figure, at least or at most, goal.
GOALS = {
    "machine": [],
    "inference": [
        ("embedded_prefill_tok_s_at_200", ">=", 400),
        ("embedded_decode_tok_s_at_200", ">=", 100),
    ],
    "train": [
        ("train_gemm_share_2k", ">=", 0.6),
        ("train_peak_gb_2k", "<=", 3.0),
    ],
    "operator": [
        ("operator_10k_sync_seconds", "<=", 60),
        ("operator_10k_rss_mib", "<=", 150),
        ("operator_burst_efficiency", ">=", 0.6),
        ("operator_latency_p99_ms", "<=", 500),
        ("operator_idle_writes", "<=", 0),
        ("operator_idle_reads_per_s", "<=", 1),
    ],
    "demo": [
        ("demo_seconds_at_200", "<=", 1800),
        ("demo_loss_gain_15k", ">=", 0.05),
        ("demo_loss_gain_0_8k", ">=", -0.02),
        ("demo_recall_base", ">=", 3),
        ("demo_recall_gain", ">=", 0.5),
    ],
}


def figures(lines):
    """Values by name, as printed; of one that was printed twice the last."""
    words = (line.split() for line in lines)
    return {w[1]: w[2] for w in words if len(w) == 3 and w[0] == "figure"}


def meets(value, side, goal):
    try:
        number = float(value)
    except ValueError:
        return False
    return math.isfinite(number) and (number <= goal if side == "<=" else number >= goal)


def judge(part, lines):
    """A line for each goal of the part, and whether all are met."""
    printed, verdicts, all_met = figures(lines), [], True
    for name, side, goal in GOALS[part]:
        value = printed.get(name, "-")
        met = meets(value, side, goal)
        all_met &= met
        verdicts.append(f"{name:<30} {value:>10}  goal {side} {goal}  {'met' if met else 'MISSED'}")
    return verdicts, all_met


def main():
    part, path = sys.argv[1:]
    with open(path, encoding="utf-8") as file:
        verdicts, all_met = judge(part, file)
    for verdict in verdicts:
        print(verdict)
    sys.exit(not all_met)


if __name__ == "__main__":
    main()
