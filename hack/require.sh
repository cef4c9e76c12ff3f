#!/usr/bin/env bash
# Makes sure that commands exist: installs their Debian packages where it may, else says what to do.
set -euo pipefail

package_of() {
  case "$1" in
    cc) echo gcc libc6-dev ;;
    python3) echo python3 python3-venv python3-pip ;;
    pip) echo python3-pip ;;
    setpriv) echo util-linux ;;
    cargo | rustc) echo '' ;; # Debian's Rust is too old: rustup's page says how.
    go) echo '' ;;            # likewise
    *) echo "$1" ;;
  esac
}

there() {
  case "$1" in
    pip) python3 -m pip --version >/dev/null 2>&1 ;; # used as a module; a program of that name is not needed
    *) command -v "$1" >/dev/null ;;
  esac
}

missing=()
for command in "$@"; do there "$command" || missing+=("$command"); done
[ "${#missing[@]}" -gt 0 ] || exit 0

packages=()
for command in "${missing[@]}"; do
  found=$(package_of "$command")
  if [ -z "$found" ]; then
    echo "'$command' is missing. Install it (Rust >= 1.95, Go >= 1.26) and run the same command again." >&2
    exit 1
  fi
  read -ra found <<<"$found"
  packages+=("${found[@]}")
done
if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
  echo "missing: ${missing[*]}. Install them (on Debian: apt-get install ${packages[*]}) and run the same command again." >&2
  exit 1
fi
apt-get update -qq
DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "${packages[@]}"
