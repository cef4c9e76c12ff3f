#!/usr/bin/env bash
# Format, lints, licences. cargo-deny is built once into the cache.
set -euo pipefail
cd "$(dirname "$0")/.."
. hack/phases.sh
export LONGSTRAP_CACHE="${LONGSTRAP_CACHE:-$HOME/.cache/longstrap}"
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$LONGSTRAP_CACHE/target}"

DENY_VERSION=0.20.2

deny() {
  local root="$LONGSTRAP_CACHE/tools/cargo-deny-$DENY_VERSION"
  if [ ! -x "$root/bin/cargo-deny" ]; then
    CARGO_TARGET_DIR="$LONGSTRAP_CACHE/tools-target" \
      cargo install --quiet --locked --root "$root" cargo-deny --version "$DENY_VERSION"
  fi
  "$root/bin/cargo-deny" --log-level error check bans licenses sources
}

# The workers know the types of kube; a client is a feature of it that only operator and command line turn on.
no_client_in_workers() {
  local tree
  tree=$(cargo tree --quiet --locked --edges normal --package longstrap-worker --prefix none --format '{p}')
  ! grep '^kube-client ' <<<"$tree"
}

phase 'rustfmt' cargo fmt --all --check
clippy() {
  cargo clippy --quiet --workspace --all-targets --locked -- -D warnings
  # Tests that stand behind a feature, because they need a control plane.
  cargo clippy --quiet --package longstrap-api-tests --all-features --all-targets --locked -- -D warnings
}

phase 'clippy' clippy
phase 'workers without a client' no_client_in_workers
phase 'cargo-deny' deny
