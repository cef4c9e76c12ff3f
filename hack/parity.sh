#!/usr/bin/env bash
# Our numbers beside PyTorch's: the smoke model, the real model, and a model that we exported (parity.sh
# [EXPORT…]). Installs a gigabyte; run before a change of engine or export is called done.
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

fixtures() {
  # Gradients and optimizer steps were written down by hack/fixtures/make_fixtures.py.
  cargo test --quiet --locked -p longstrap-training fixture
}

real_model() {
  cargo run --release --locked --quiet -p longstrap -- import gguf \
    "$(hack/fetch-smollm2.sh)/SmolLM2-135M-Instruct.Q4_1.gguf" --out "$WORK/smollm2"
  compare "$WORK/smollm2"
}

phase 'PyTorch' hack/venv.sh "$VENV" hack/fixtures/requirements.txt
phase 'smoke model' compare examples/smoke/model
phase 'SmolLM2-135M' real_model
phase 'gradients, optimizer' fixtures
for export in "$@"; do phase "$export" compare "$export"; done
