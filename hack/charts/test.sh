#!/usr/bin/env bash
# Tests of the charts: lint, refusals, what is rendered, and a real API server that takes it.
# Helm and the control plane are built once, into the cache. Arguments go to `go test` (-update, -run …).
set -euo pipefail
cd "$(dirname "$0")"
LONGSTRAP_HELM=$(./helm.sh)
LONGSTRAP_CONTROL_PLANE=$(../control-plane/build.sh)
export LONGSTRAP_HELM LONGSTRAP_CONTROL_PLANE
echo 'charts: lint, values, templates, alerts and dashboard, dry run and installation at a real API server'
CGO_ENABLED=0 go test -count=1 . "$@"
