#!/usr/bin/env bash
# The operator against a real Kubernetes API. Builds the control plane once, into the cache.
# With arguments (names of tests) only those run, without what is checked afterwards.
set -euo pipefail
cd "$(dirname "$0")/.."
. hack/phases.sh

export RUST_BACKTRACE=1
export LONGSTRAP_CACHE="${LONGSTRAP_CACHE:-$HOME/.cache/longstrap}"
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$LONGSTRAP_CACHE/target}"
LOGS=$(mktemp -d "${TMPDIR:-/tmp}/longstrap-api.XXXXXX")
trap 'rm -rf "$LOGS"; phase_table' EXIT
# The control plane's data too: a test binary ends without taking it away.
export TMPDIR="$LOGS" LONGSTRAP_AUDIT_LOG="$LOGS/audit" LONGSTRAP_REASONS_LOG="$LOGS/reasons"

tools() { hack/require.sh cargo rustc cc go openssl; }

build() {
  cargo build --quiet --locked -p longstrap-operator -p longstrap
  cargo test --quiet --locked -p longstrap-api-tests --features control-plane --no-run
}

# What the tests find by the environment.
with_plane() {
  LONGSTRAP_CONTROL_PLANE=$(hack/control-plane/build.sh)
  LONGSTRAP_RENDERED_CHART=$(hack/control-plane/chart.sh)
  export LONGSTRAP_CONTROL_PLANE LONGSTRAP_RENDERED_CHART LONGSTRAP_BIN_DIR="$CARGO_TARGET_DIR/debug"
}

run() { # TEST-TARGET ARG…
  local target=$1
  shift
  with_plane
  cargo test --quiet --locked -p longstrap-api-tests --features control-plane --test "$target" -- --nocapture "$@"
}

# Most of the time a test waits, for a Job controller or for a lease: more of them than cores.
api_tests() { run api --test-threads 12 "$@"; }
scopes() { run scopes; }
afterwards() { run afterwards; }

# The figures of `make figures PART=operator` with few objects: that they can still be measured.
few_objects() {
  with_plane
  LONGSTRAP_AUDIT_LOG="$LOGS/audit.figures" "$CARGO_TARGET_DIR/debug/operator_figures" 500 20 10 50
}

phase 'tools' tools
phase 'control plane' hack/control-plane/build.sh
phase 'chart' hack/control-plane/chart.sh
phase 'build' build
phase 'API tests' api_tests "$@"
[ $# -eq 0 ] || exit 0
phase 'cluster-wide, namespaced' scopes
phase 'rights and reasons' afterwards
phase 'figures with 500 objects' few_objects
