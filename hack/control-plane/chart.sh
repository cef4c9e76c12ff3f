#!/usr/bin/env bash
# Renders the chart as it is installed by default, and prints the file's path: the API tests give the
# operator the roles in it. Beside it, in chart-namespaced.yaml, lies the chart for two namespaces.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
cache="${LONGSTRAP_CACHE:-$HOME/.cache/longstrap}"
helm=$("$here/../charts/helm.sh")
render() { # NAME VALUE…
  local name=$1 out
  shift
  # Whole or not at all: another run may read it now.
  out=$(mktemp "$cache/helm/chart.XXXXXX")
  "$helm" template longstrap "$here/../../charts/longstrap" --namespace longstrap-system \
    --kube-version 1.37.2 "$@" >"$out"
  mv "$out" "$cache/helm/$name"
}

render chart.yaml
render chart-namespaced.yaml --set 'namespaces={team-0,team-1}' --set clusterIdentity=c
printf '%s\n' "$cache/helm/chart.yaml"
