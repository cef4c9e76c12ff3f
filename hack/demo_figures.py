"""Prints the figures of the demo from a run's results.json: demo_figures.py RUN_FOLDER"""

import json
import sys
from pathlib import Path

# figure: field of the comparison at the run's longest window (nats; positive is better).
FIGURES = {
    "demo_loss_gain_15k": "lossGainEnd",
    "demo_loss_gain_0_8k": "lossGainWithin",
    "demo_recall_base": "recallGainBaseChange",
    "demo_recall_gain": "recallGain",
}


def main():
    results = json.loads((Path(sys.argv[1]) / "results.json").read_text())
    comparison = max(results["comparisons"], key=lambda c: c["window"])
    for figure, field in FIGURES.items():
        if field not in comparison:
            sys.exit(f"{figure}: the run did not measure {field} at {comparison['window']} tokens")
        print(f"figure {figure} {comparison[field]}")


if __name__ == "__main__":
    main()
