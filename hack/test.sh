#!/usr/bin/env bash
# Every test there is, in one build profile. Sets up what it needs; prints seconds per phase.
set -euo pipefail
cd "$(dirname "$0")/.."
. hack/phases.sh
export LONGSTRAP_CACHE="${LONGSTRAP_CACHE:-$HOME/.cache/longstrap}"
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$LONGSTRAP_CACHE/target}"

export RUST_BACKTRACE=1
VENV="$LONGSTRAP_CACHE/venv-read-export"

tools() {
  hack/require.sh cargo rustc cc make git python3 pip go setpriv mount openssl
  hack/venv.sh "$VENV" hack/parity/requirements-read-export.txt
}

build() {
  # --locked: the tree's own lock decides, here as on any other machine.
  cargo test --quiet --workspace --locked --no-run
  cargo build --quiet --workspace --locked --bins
}

# The tests marked `ignored` are those that need the real model, which is fetched here.
rust_tests() {
  LONGSTRAP_SMOLLM2=$(hack/fetch-smollm2.sh)
  export LONGSTRAP_SMOLLM2 LONGSTRAP_BIN_DIR="$CARGO_TARGET_DIR/debug"
  cargo test --workspace --locked -- --include-ignored
}

# An exported model as other tools read it: every value, shape and template, not only that it loads.
read_export() {
  local out
  out=$(mktemp -d)
  hack/smoke.sh "$CARGO_TARGET_DIR/debug" "$out"
  "$CARGO_TARGET_DIR/debug/examples/parity_dump" "$out/run/model" "$out/dump.json"
  "$VENV/bin/python" hack/parity/read_export.py "$out/run/model" --dump "$out/dump.json" \
    --window 1024 --rope-base 160000 --dtype F32 --against "$out"/run/stages/one-k/*/
  rm -rf "$out"
}

# The first seconds of `make demo`, with its model and corpus: its manifests must find enough in them.
quickstart() {
  local out run
  out=$(mktemp -d)
  "$CARGO_TARGET_DIR/debug/longstrap" import gguf \
    "$(hack/fetch-smollm2.sh)/SmolLM2-135M-Instruct.Q4_1.gguf" --out "$out/model"
  python3 hack/quickstart/corpus.py --out "$out"
  "$CARGO_TARGET_DIR/debug/longstrap" local run -f examples/quickstart/synthesis.yaml --out "$out" >"$out/log" 2>&1 &
  run=$!
  until [ -f "$out/synthesis/run.json" ]; do
    kill -0 "$run" 2>/dev/null || { cat "$out/log"; return 1; }
    sleep 0.2
  done
  kill -INT "$run"
  # 130: interrupted, as it was told to be.
  wait "$run" || [ $? -eq 130 ] || { cat "$out/log"; return 1; }
  rm -rf "$out"
}

crd_tests() { (cd hack/crd-validation && go test ./...); }

# What `kubectl wait`, Flux and others read in each phase's conditions.
kstatus() { (cd tests/gitops/kstatus && go test ./...); }

# Each by its path: its folder is then where it imports from.
script_tests() { for test in hack/*/test_*.py; do echo "$test"; python3 "$test" || return; done; }

phase 'tools' tools
phase 'build' build
phase 'profile' hack/profile.sh
phase 'tests' rust_tests
phase 'export read by transformers' read_export
phase 'quickstart prepares' quickstart
phase 'CRDs by the API server' crd_tests
phase 'scripts' script_tests
phase 'kstatus' kstatus
phase 'charts' hack/charts/test.sh
phase 'operator against a real API' hack/test-api.sh
