#!/usr/bin/env bash
# Runs examples/smoke, the whole road with a tiny model, with its scripted chat server:
# smoke.sh BIN_DIR OUT. BIN_DIR holds longstrap, longstrap-worker and scripted_chat.
set -euo pipefail
cd "$(dirname "$0")/.."
bin=$1 out=$2

mkdir -p "$out/manifests"
# On any free port, which it tells: several of these may run at once.
coproc CHAT { exec "$bin/scripted_chat" 127.0.0.1:0; }
server=$CHAT_PID
trap 'kill "$server" 2>/dev/null || true' EXIT
read -r started <&"${CHAT[0]}" || { echo "scripted_chat did not start" >&2; exit 1; }
echo "scripted_chat $started"
address=${started##* }
for manifest in examples/smoke/*.yaml; do
  sed "s|http://127.0.0.1:18080/v1|$address|" "$manifest" >"$out/manifests/${manifest##*/}"
done
grep -q "$address" "$out/manifests/synthesis.yaml" || { echo "examples/smoke/synthesis.yaml names another address than 127.0.0.1:18080" >&2; exit 1; }
cp -r examples/smoke/model examples/smoke/corpus/corpus.jsonl examples/smoke/short.jsonl "$out/"
"$bin/longstrap" local run -f "$out/manifests" --out "$out"
