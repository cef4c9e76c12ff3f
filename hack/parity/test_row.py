"""Every number of a row counts: one that is off anywhere is found."""

import copy
import unittest
from math import inf, nan

from dump import Findings
from row import POSITIONS, check_row

ROW = {
    "nll": [1.0 + i / 64 for i in range(12)],
    "next": [{"id": i, "logProbability": -2.0 - i} for i in range(3)],
    "logits": [{"position": p, "values": [p - i / 8 for i in range(20)]} for p in range(POSITIONS)],
}
THEIRS = {
    "nll": list(ROW["nll"]),
    "next": [-2.0 - i for i in range(20)],
    "logits": {entry["position"]: list(entry["values"]) for entry in ROW["logits"]},
}


def off(values, at, by):
    values[at] += by


# Adding a constant to a row of logits changes no loss and no log-probability.
BREAKAGES = {
    "first logit": lambda row: off(row["logits"][0]["values"], 0, 1.1e-4),
    "last logit": lambda row: off(row["logits"][-1]["values"], 19, -1.1e-4),
    "a position's logits by a constant": lambda row: row["logits"][3].update(values=[x + 2e-4 for x in row["logits"][3]["values"]]),
    "logits of the position before": lambda row: row["logits"][5].update(values=row["logits"][4]["values"]),
    "two logits swapped": lambda row: row["logits"][2]["values"].reverse(),
    "a logit that is no number": lambda row: off(row["logits"][1]["values"], 7, nan),
    "an infinite logit": lambda row: off(row["logits"][1]["values"], 7, inf),
    "a logit too few": lambda row: row["logits"][1]["values"].pop(),
    "a position too few": lambda row: row["logits"].pop(),
    "no logits": lambda row: row["logits"].clear(),
    "a position twice": lambda row: row["logits"].__setitem__(1, row["logits"][0]),
    "a loss": lambda row: off(row["nll"], 6, 1.1e-4),
    "a loss too few": lambda row: row["nll"].pop(),
    "all losses by less than each may be": lambda row: row.update(nll=[x + 2e-5 for x in row["nll"]]),
    "a log-probability": lambda row: row["next"][2].update(logProbability=-4.0002),
}


def found(breakage):
    row, findings = copy.deepcopy(ROW), Findings()
    breakage(row)
    check_row(findings, 0, row, THEIRS)
    return findings.wrong


class RowTest(unittest.TestCase):
    def test_breakages_are_found(self):
        for what, breakage in BREAKAGES.items():
            with self.subTest(what):
                self.assertTrue(found(breakage))

    def test_what_is_within_the_bounds_passes(self):
        self.assertEqual(found(lambda row: None), [])
        self.assertEqual(found(lambda row: off(row["logits"][0]["values"], 0, 9e-5)), [])


if __name__ == "__main__":
    unittest.main()
