#!/usr/bin/env bash
# Builds etcd, kube-apiserver, kube-controller-manager and kubectl from Go modules into the cache
# and prints their folder. A version that is there is not built again.
# build.sh [MODULE]: kubernetes (by default) or kubernetes-1.33, which pins the oldest version that
# the chart allows.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
module=${1:-${LONGSTRAP_KUBERNETES:-kubernetes}}
version() { awk -v module="$2" '$1 == "require" && $2 == module { print substr($3, 2) }' "$here/$1/go.mod"; }
KUBERNETES=$(version "$module" k8s.io/kubernetes)
ETCD=$(version etcd go.etcd.io/etcd/server/v3)
out="${LONGSTRAP_CACHE:-$HOME/.cache/longstrap}/control-plane/$KUBERNETES-$ETCD"
mkdir -p "$out"

build() { # MODULE PACKAGE BINARY [LDFLAGS]
  [ -x "$out/$3" ] && return 0
  (cd "$here/$1" && CGO_ENABLED=0 go build -mod=readonly -tags tools -trimpath -ldflags "-s -w ${4:-}" -o "$out/.$3" "$2")
  mv "$out/.$3" "$out/$3"
}

base=k8s.io/component-base/version
minor=${KUBERNETES#*.}
flags="-X $base.gitVersion=v$KUBERNETES -X $base.gitMajor=${KUBERNETES%%.*} -X $base.gitMinor=${minor%%.*}"
build etcd go.etcd.io/etcd/server/v3 etcd
for command in kube-apiserver kube-controller-manager kubectl; do
  build "$module" "k8s.io/kubernetes/cmd/$command" "$command" "$flags"
done
printf '%s\n' "$out"
