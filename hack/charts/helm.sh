#!/usr/bin/env bash
# Builds Helm from its Go module into the cache and prints its path. A version that is there is not
# built again.
set -euo pipefail
cd "$(dirname "$0")/helm"
HELM=3.22.0
out="${LONGSTRAP_CACHE:-$HOME/.cache/longstrap}/helm/$HELM"
if [ ! -x "$out/helm" ]; then
  mkdir -p "$out"
  CGO_ENABLED=0 nice -n 10 go build -mod=readonly -tags tools -trimpath \
    -ldflags "-s -w -X helm.sh/helm/v3/internal/version.version=v$HELM" -o "$out/.helm" helm.sh/helm/v3/cmd/helm
  mv "$out/.helm" "$out/helm"
fi
printf '%s\n' "$out/helm"
