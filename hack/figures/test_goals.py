"""What counts as met. Run: python3 -m unittest discover -s hack/figures"""

import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

import goals

TRAIN = ["figure train_gemm_share_2k 0.71\n", "figure train_peak_gb_2k 2.5\n"]


class Goals(unittest.TestCase):
    def judged(self, part, lines):
        verdicts, met = goals.judge(part, lines)
        return [(line.split()[0], line.split()[-1]) for line in verdicts], met

    def test_each_goal_is_held_against_the_figure(self):
        self.assertEqual(
            self.judged("train", ["noise\n", "figure train_tokens_per_s_2k 5\n", *TRAIN]),
            ([("train_gemm_share_2k", "met"), ("train_peak_gb_2k", "met")], True),
        )
        worse = [TRAIN[0], "figure train_peak_gb_2k 3.1\n"]
        self.assertEqual(
            self.judged("train", worse),
            ([("train_gemm_share_2k", "met"), ("train_peak_gb_2k", "MISSED")], False),
        )

    def test_what_was_not_printed_or_is_no_number_is_missed(self):
        for lines in ([TRAIN[0]], [TRAIN[0], "figure train_peak_gb_2k NaN\n"], [TRAIN[0], "figure train_peak_gb_2k\n"]):
            self.assertEqual(
                self.judged("train", lines),
                ([("train_gemm_share_2k", "met"), ("train_peak_gb_2k", "MISSED")], False),
            )
        self.assertEqual(self.judged("machine", []), ([], True))

    def test_the_exit_code_tells(self):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "train.txt"
            for lines, code in ((TRAIN, 0), (TRAIN[:1], 1)):
                path.write_text("".join(lines))
                command = [sys.executable, goals.__file__, "train", str(path)]
                self.assertEqual(subprocess.run(command, capture_output=True, check=False).returncode, code)

    def test_every_part_that_can_be_asked_for_has_its_goals(self):
        script = (Path(__file__).parent.parent / "figures.sh").read_text()
        self.assertIn("  " + " | ".join(goals.GOALS) + ") phase", script)


if __name__ == "__main__":
    unittest.main()
