#!/usr/bin/env bash
# Records the present definitions and examples as those of a version: record.sh NAME. Objects with a
# status, as a cluster has them, are put beside them by hand: stored.yaml.
set -euo pipefail
name=${1:?the name of a version, as v0.1.0}
here=$(cd "$(dirname "$0")" && pwd)
root="$here/../.."
[ ! -e "$here/$name" ] || { echo "$here/$name is there already, and must not change" >&2; exit 1; }
mkdir "$here/$name"
cp "$root"/crds/generated/*.yaml "$here/$name/"
for file in "$root"/examples/*/*.yaml; do
  printf -- '---\n# %s\n' "${file#"$root/"}"
  cat "$file"
done >"$here/$name/objects.yaml"
touch "$here/$name/stored.yaml"
