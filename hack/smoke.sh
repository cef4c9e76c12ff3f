#!/usr/bin/env bash
# Runs examples/smoke, the whole road with a tiny model, with its scripted chat server:
# smoke.sh BIN_DIR OUT. BIN_DIR holds longstrap, longstrap-worker and scripted_chat.
set -euo pipefail
cd "$(dirname "$0")/.."
bin=$1 out=$2

# The port is the manifests'; a server of somebody else there must not answer in our place.
mkdir -p "$out"
coproc CHAT { exec "$bin/scripted_chat"; }
server=$CHAT_PID
trap 'kill "$server" 2>/dev/null || true' EXIT
read -r started <&"${CHAT[0]}" || { echo "scripted_chat did not start: is port 18080 taken?" >&2; exit 1; }
echo "scripted_chat $started"
cp -r examples/smoke/model examples/smoke/corpus/corpus.jsonl examples/smoke/short.jsonl "$out/"
"$bin/longstrap" local run -f examples/smoke --out "$out"
