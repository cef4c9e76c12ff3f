#!/usr/bin/env bash
# Builds Kueue from its Go module into the cache (about 11 minutes on one core) and prints the folder:
# the binary `kueue` and its CRDs in `crds/`. A version that is there is not built again.
set -euo pipefail
cd "$(dirname "$0")"
module=sigs.k8s.io/kueue
version=$(GOFLAGS=-mod=mod go list -m -f '{{.Version}}' $module)
out="${LONGSTRAP_CACHE:-$HOME/.cache/longstrap}/kueue/$version"
if ! [ -x "$out/kueue" ]; then
  mkdir -p "$out/crds"
  CGO_ENABLED=0 go build -mod=readonly -trimpath -ldflags '-s -w' -o "$out/.kueue" $module/cmd/kueue
  install -m 644 "$(go list -mod=readonly -m -f '{{.Dir}}' $module)"/config/components/crd/bases/*.yaml "$out/crds/"
  mv "$out/.kueue" "$out/kueue"
fi
printf '%s\n' "$out"
