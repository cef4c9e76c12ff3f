#!/usr/bin/env bash
# Every test there is, in one build profile. Sets up what it needs; prints seconds per phase.
set -euo pipefail
cd "$(dirname "$0")/.."
. hack/phases.sh

export RUST_BACKTRACE=1
VENV="$LONGSTRAP_CACHE/venv-read-export"

tools() {
  hack/require.sh cargo rustc cc make git curl python3 go
  hack/venv.sh "$VENV" hack/parity/requirements-read-export.txt
}

build() {
  # --locked: the tree's own lock decides, here as on any other machine.
  cargo test --quiet --workspace --locked --no-run
  cargo build --quiet --workspace --locked --bins
}

model() { LONGSTRAP_SMOLLM2="$(hack/fetch-smollm2.sh)" && export LONGSTRAP_SMOLLM2; }

rust_tests() {
  LONGSTRAP_BIN_DIR="$CARGO_TARGET_DIR/debug" cargo test --workspace --locked -- --include-ignored
}

crd_tests() { (cd hack/crd-validation && go test ./...); }

# Each by its path: its folder is then where it imports from.
script_tests() { for test in hack/*/test_*.py; do echo "$test"; python3 "$test" || return; done; }

phase 'tools' tools
phase 'build' build
phase 'real model' model
phase 'tests' rust_tests
phase 'CRDs by the API server' crd_tests
phase 'scripts' script_tests
