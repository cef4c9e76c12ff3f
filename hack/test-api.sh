#!/usr/bin/env bash
# The operator against a real Kubernetes API. Builds the control plane once, into the cache.
set -euo pipefail
cd "$(dirname "$0")/.."
. hack/phases.sh

export RUST_BACKTRACE=1

control_plane() {
  hack/require.sh cargo rustc cc go openssl
  hack/control-plane/build.sh
}

build() {
  cargo build --quiet --locked -p longstrap-operator
  cargo test --quiet --locked -p longstrap-api-tests --features control-plane --no-run
}

api_tests() {
  LONGSTRAP_CONTROL_PLANE=$(hack/control-plane/build.sh) LONGSTRAP_BIN_DIR="$CARGO_TARGET_DIR/debug" \
    cargo test --locked -p longstrap-api-tests --features control-plane -- "$@"
}

phase 'control plane' control_plane
phase 'build' build
phase 'API tests' api_tests "$@"
