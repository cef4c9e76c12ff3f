#!/usr/bin/env bash
# The profile of the tests must compute as fast as a release build: a matrix product in it reaches
# at least 0.9 of the release rate (overflow checks once cost two thirds). Best of three, in turn.
set -euo pipefail
cd "$(dirname "$0")/.."

rate() { # FOLDER
  "$CARGO_TARGET_DIR/$1/examples/gemm_rate" 1 | awk '{ print $3 }'
}

cargo build --quiet --locked -p longstrap-engine --example gemm_rate
cargo build --quiet --locked -p longstrap-engine --example gemm_rate --release
for _ in 1 2 3; do echo "$(rate debug) $(rate release)"; done | awk '
  { if ($1 > test) test = $1; if ($2 > release) release = $2 }
  END {
    printf "test profile %.1f GFLOP/s, release %.1f: %.2f of it (at least 0.9)\n", test, release, test / release
    exit test < 0.9 * release
  }'
