#!/usr/bin/env bash
# Measured figures, as lines `figure NAME VALUE`, each held against its goal.
# figures.sh [all|machine|inference|train|operator|demo]. Every part measures the machine's own matrix rate
# before and after; the lower one counts. A missed goal is an exit code and a line, never hidden; so is
# a figure that was not printed (hack/figures/goals.py).
set -euo pipefail
cd "$(dirname "$0")/.."
. hack/phases.sh
export LONGSTRAP_CACHE="${LONGSTRAP_CACHE:-$HOME/.cache/longstrap}"
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$LONGSTRAP_CACHE/target}"
PART=${1:-all}

example() { # PACKAGE NAME [ARG…]
  local package=$1 name=$2
  shift 2
  cargo run --release --locked --quiet -p "$package" --example "$name" -- "$@"
}

gemm() { example longstrap-engine gemm_rate 2 | awk '{ print $3 }'; }

value() { awk -v name="$1" '$1 == "figure" && $2 == name { value = $3 } END { print value }' "$LOG"; }

# Scales a speed or a time to a machine of 200 GFLOP/s, so that runs can be compared.
speed_at_200() { awk -v v="$1" -v g="$2" 'BEGIN { printf "%.1f", v * 200 / g }'; }
seconds_at_200() { awk -v v="$1" -v g="$2" 'BEGIN { printf "%.0f", v * g / 200 }'; }

machine() { example longstrap-engine gemm_rate 2; }

inference() {
  local model="$LONGSTRAP_CACHE/figures/smollm2" name
  cargo build --release --locked --quiet -p longstrap
  "$CARGO_TARGET_DIR/release/longstrap" import gguf \
    "$(hack/fetch-smollm2.sh)/SmolLM2-135M-Instruct.Q4_1.gguf" --out "$model" >&2
  example longstrap-inference inference_figures "$model" 2 >"$LOG"
  cat "$LOG"
  for name in embedded_prefill_tok_s embedded_decode_tok_s; do
    echo "figure ${name}_at_200 $(speed_at_200 "$(value $name)" "$(value machine_gemm_gflops)")"
  done
}

train() { example longstrap-training train_figures; }

# The control plane is real and shares the machine: its data go with the folder.
operator() {
  local logs
  logs=$(mktemp -d "$WORK/operator.XXXXXX")
  cargo build --release --locked --quiet -p longstrap-operator -p longstrap-api-tests
  LONGSTRAP_CONTROL_PLANE=$(hack/control-plane/build.sh) LONGSTRAP_RENDERED_CHART=$(hack/control-plane/chart.sh) \
    LONGSTRAP_BIN_DIR="$CARGO_TARGET_DIR/release" LONGSTRAP_AUDIT_LOG="$logs/audit" TMPDIR="$logs" \
    "$CARGO_TARGET_DIR/release/operator_figures"
}

demo() {
  local out before after start lower
  # Built before the clock starts: the goal is for the run, not for the compiler.
  cargo build --release --locked --quiet -p longstrap -p longstrap-worker
  out=$(mktemp -d "$WORK/demo.XXXXXX")
  before=$(gemm)
  start=$SECONDS
  hack/demo.sh "$out" >&2
  echo "figure demo_seconds $((SECONDS - start))" | tee "$LOG"
  after=$(gemm)
  lower=$(awk -v a="$before" -v b="$after" 'BEGIN { print (a < b ? a : b) }')
  echo "figure machine_gemm_gflops $lower"
  echo "figure demo_seconds_at_200 $(seconds_at_200 "$(value demo_seconds)" "$lower")"
  python3 hack/demo_figures.py "$out/run"
}

# Prints a part's lines as they come, then whether its goals were met.
part() {
  local lines="$WORK/$1.txt"
  LOG="$WORK/$1.log"
  "$1" | tee "$lines"
  python3 hack/figures/goals.py "$1" "$lines"
}

WORK=$(mktemp -d)
trap 'rm -rf "$WORK"; phase_table' EXIT

case "$PART" in
  machine | inference | train | operator | demo) phase "figures: $PART" part "$PART" ;;
  all) for each in inference train operator demo; do phase "figures: $each" part "$each"; done ;;
  *) echo "unknown part '$PART': one of all, machine, inference, train, operator, demo" >&2; exit 2 ;;
esac
