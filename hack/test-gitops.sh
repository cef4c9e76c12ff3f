#!/usr/bin/env bash
# What GitOps tools see of our objects: kstatus of every phase, Argo CD's difference of every example.
set -euo pipefail
cd "$(dirname "$0")/.."
. hack/phases.sh

tools() { hack/require.sh go openssl; }
kstatus() { (cd tests/gitops/kstatus && go test ./...); }
# Argo CD's engine needs a newer Go than this tree: the go command fetches it.
argocd() {
  LONGSTRAP_CONTROL_PLANE=$(hack/control-plane/build.sh)
  export LONGSTRAP_CONTROL_PLANE
  (cd tests/gitops/argocd && GOTOOLCHAIN=auto go test -count=1 ./...)
}

phase 'tools' tools
phase 'control plane' hack/control-plane/build.sh
phase 'kstatus of every phase' kstatus
phase 'Argo CD: difference of every example' argocd
