#!/usr/bin/env bash
# Renders the chart as it is installed by default, and prints the file's path: the API tests give the
# operator the roles in it.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
cache="${LONGSTRAP_CACHE:-$HOME/.cache/longstrap}"
helm=$("$here/../charts/helm.sh")
# Whole or not at all: another run may read it now.
out=$(mktemp "$cache/helm/chart.XXXXXX")
"$helm" template longstrap "$here/../../charts/longstrap" --namespace longstrap-system \
  --kube-version 1.37.2 >"$out"
mv "$out" "$cache/helm/chart.yaml"
printf '%s\n' "$cache/helm/chart.yaml"
