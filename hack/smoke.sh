#!/usr/bin/env bash
# Runs examples/smoke, the whole road with a tiny model, with its scripted chat server:
# smoke.sh BIN_DIR OUT. BIN_DIR holds longstrap, longstrap-worker and scripted_chat.
set -euo pipefail
cd "$(dirname "$0")/.."
bin=$1 out=$2

"$bin/scripted_chat" &
server=$!
trap 'kill "$server"' EXIT
mkdir -p "$out"
cp -r examples/smoke/model examples/smoke/corpus/corpus.jsonl examples/smoke/short.jsonl "$out/"
"$bin/longstrap" local run -f examples/smoke --out "$out"
