#!/usr/bin/env bash
# Measured figures, as lines `figure NAME VALUE`. figures.sh [all|machine|inference|train|demo]
# Every part measures the machine's own matrix rate before and after; the lower one counts.
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

gemm() { example longstrap-engine machine | awk '$2 == "machine_gemm_gflops" { print $3 }'; }

lower() { awk -v a="$1" -v b="$2" 'BEGIN { print (a < b ? a : b) }'; }

# Runs a command between two measurements of the machine; its lines on stdout go through.
between() {
  local before after
  before=$(gemm)
  "$@"
  after=$(gemm)
  GEMM=$(lower "$before" "$after")
  echo "figure machine_gemm_gflops $GEMM"
}

machine() { between true; }

inference() {
  local model log
  model="$LONGSTRAP_CACHE/figures/smollm2"
  log=$(mktemp)
  cargo build --release --locked --quiet -p longstrap
  "$CARGO_TARGET_DIR/release/longstrap" import gguf \
    "$(hack/fetch-smollm2.sh)/SmolLM2-135M-Instruct.Q4_1.gguf" --out "$model" >&2
  between example longstrap-inference figures "$model" | tee "$log"
  # At 200 GFLOP/s, so that runs on different machines can be compared.
  awk '$2 == "machine_gemm_gflops" { gemm = $3 }
       $2 == "embedded_prefill_tok_s" || $2 == "embedded_decode_tok_s" { value[$2] = $3 }
       END { for (name in value) printf "figure %s_at_200 %.1f\n", name, value[name] * 200 / gemm }' "$log"
  rm -f "$log"
}

train() { between example longstrap-training figures; }

demo() {
  local out log start
  # Built before the clock starts: the goal is for the run, not for the compiler.
  cargo build --release --locked --quiet -p longstrap -p longstrap-worker
  out=$(mktemp -d "${TMPDIR:-/tmp}/longstrap-demo.XXXXXX")
  log=$(mktemp)
  measured_demo() {
    start=$SECONDS
    hack/demo.sh "$out" >&2
    echo "figure demo_seconds $((SECONDS - start))"
  }
  between measured_demo | tee "$log"
  awk '$2 == "machine_gemm_gflops" { gemm = $3 } $2 == "demo_seconds" { seconds = $3 }
       END { printf "figure demo_seconds_at_200 %.0f\n", seconds * gemm / 200 }' "$log"
  python3 hack/demo_figures.py "$out/run"
  rm -rf "$log" "$out"
}

case "$PART" in
  machine | inference | train | demo) phase "figures: $PART" "$PART" ;;
  all) for part in inference train demo; do phase "figures: $part" "$part"; done ;;
  *) echo "unknown part '$PART': one of all, machine, inference, train, demo" >&2; exit 2 ;;
esac
