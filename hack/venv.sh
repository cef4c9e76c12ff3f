#!/usr/bin/env bash
# A Python environment outside the tree: venv.sh DIR REQUIREMENTS. Made again when the pins change.
set -euo pipefail
dir=$1 requirements=$2
stamp="$dir/requirements.sha256"
want=$(sha256sum <"$requirements")
[ -f "$stamp" ] && [ "$(cat "$stamp")" = "$want" ] && exit 0
rm -rf "$dir"
python3 -m venv "$dir"
"$dir/bin/pip" install --quiet --disable-pip-version-check --requirement "$requirements"
printf '%s\n' "$want" >"$stamp"
