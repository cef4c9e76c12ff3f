#!/usr/bin/env bash
# Format, lints, licences. cargo-deny is built once into the cache.
set -euo pipefail
cd "$(dirname "$0")/.."
. hack/phases.sh

DENY_VERSION=0.20.2

deny() {
  local root="$LONGSTRAP_CACHE/tools/cargo-deny-$DENY_VERSION"
  if [ ! -x "$root/bin/cargo-deny" ]; then
    CARGO_TARGET_DIR="$LONGSTRAP_CACHE/tools-target" \
      cargo install --quiet --locked --root "$root" cargo-deny --version "$DENY_VERSION"
  fi
  "$root/bin/cargo-deny" --log-level error check bans licenses sources
}

phase 'rustfmt' cargo fmt --all --check
phase 'clippy' cargo clippy --quiet --workspace --all-targets --locked -- -D warnings
phase 'cargo-deny' deny
