#!/usr/bin/env bash
# The profile of the tests must compute as fast as a release build: a matrix product in it reaches
# at least 0.9 of the release rate (overflow checks once cost two thirds). Best of all rounds so far,
# measured in turn, at most ten: neighbours slow single rounds down, but make no profile faster than it is.
set -euo pipefail
cd "$(dirname "$0")/.."

rate() { # FOLDER
  "$CARGO_TARGET_DIR/$1/examples/gemm_rate" 1 | awk '{ print $3 }'
}

cargo build --quiet --locked -p longstrap-engine --example gemm_rate
cargo build --quiet --locked -p longstrap-engine --example gemm_rate --release
test=0 release=0
for round in 1 2 3 4 5 6 7 8 9 10; do
  test=$(printf '%s\n' "$test" "$(rate debug)" | sort -g | tail -1)
  release=$(printf '%s\n' "$release" "$(rate release)" | sort -g | tail -1)
  share=$(awk "BEGIN { printf \"%.2f\", $test / $release }")
  enough=$(awk "BEGIN { print ($test >= 0.9 * $release) }")
  [ "$round" -ge 3 ] && [ "$enough" = 1 ] && break
done
printf 'test profile %s GFLOP/s, release %s: %s of it (at least 0.9)\n' "$test" "$release" "$share"
[ "$enough" = 1 ]
