#!/usr/bin/env bash
# The operator with a real Kueue, built from its Go module into the cache once.
set -euo pipefail
cd "$(dirname "$0")/.."
. hack/phases.sh

export RUST_BACKTRACE=1

tools() { hack/require.sh cargo rustc cc go openssl; }

build() {
  cargo build --quiet --locked -p longstrap-operator
  cargo test --quiet --locked -p longstrap-api-tests --features kueue --test kueue --no-run
}

kueue_tests() {
  LONGSTRAP_CONTROL_PLANE=$(hack/control-plane/build.sh) LONGSTRAP_KUEUE=$(hack/kueue/build.sh) \
    LONGSTRAP_RENDERED_CHART=$(hack/control-plane/chart.sh) \
    LONGSTRAP_BIN_DIR="$CARGO_TARGET_DIR/debug" \
    cargo test --locked -p longstrap-api-tests --features kueue --test kueue
}

phase 'tools' tools
phase 'control plane' hack/control-plane/build.sh
phase 'Kueue' hack/kueue/build.sh
phase 'build' build
phase 'Kueue tests' kueue_tests
