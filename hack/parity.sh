#!/usr/bin/env bash
# Our numbers beside PyTorch's: gradients and optimizer steps, the smoke model before and after its
# training, the real model, and other exports (parity.sh [EXPORT…]). Installs a gigabyte; run before a
# change of engine or export is called done.
set -euo pipefail
cd "$(dirname "$0")/.."
. hack/phases.sh
export LONGSTRAP_CACHE="${LONGSTRAP_CACHE:-$HOME/.cache/longstrap}"
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$LONGSTRAP_CACHE/target}"
VENV="$LONGSTRAP_CACHE/venv-parity"
WORK=$(mktemp -d)
trap 'rm -rf "$WORK"; phase_table' EXIT

compare() { # MODEL_DIR
  cargo run --release --locked --quiet -p longstrap-evaluation --example parity_dump -- "$1" "$WORK/dump.json"
  "$VENV/bin/python" hack/parity/parity.py "$1" "$WORK/dump.json"
}

# What PyTorch computed is in hack/fixtures/data, written by make_fixtures.py beside it.
gradients() { cargo test --locked -p longstrap-training --lib tests::parity; }

smoke_export() {
  cargo build --release --locked --quiet -p longstrap -p longstrap-worker -p longstrap-tests --bins
  hack/smoke.sh "$CARGO_TARGET_DIR/release" "$WORK/smoke"
  compare "$WORK/smoke/run/model"
}

real_model() {
  cargo run --release --locked --quiet -p longstrap -- import gguf \
    "$(hack/fetch-smollm2.sh)/SmolLM2-135M-Instruct.Q4_1.gguf" --out "$WORK/smollm2"
  compare "$WORK/smollm2"
}

phase 'PyTorch' hack/venv.sh "$VENV" hack/fixtures/requirements.txt
phase 'smoke model' compare examples/smoke/model
phase 'SmolLM2-135M' real_model
phase 'smoke model, extended' smoke_export
phase 'gradients, optimizer' gradients
for export in "$@"; do phase "$export" compare "$export"; done
