# Sourced by the other scripts: runs phases, and prints what each took at the end, whatever happened.
# Invariant: the first command that fails ends its phase, and the phase ends the script with its exit code.

PHASES=()
PHASE_SECONDS=()

phase() { # NAME COMMAND…
  local name=$1 start=$SECONDS code
  shift
  printf '\n== %s\n' "$name"
  # A subshell that is no condition: behind `||` or `if` bash would ignore errexit inside the phase.
  set +e
  (
    trap - EXIT
    set -e
    "$@"
  )
  code=$?
  set -e
  PHASES+=("$name")
  PHASE_SECONDS+=($((SECONDS - start)))
  if [ "$code" -ne 0 ]; then
    printf '== %s failed with exit code %d\n' "$name" "$code" >&2
    exit "$code"
  fi
}

phase_table() {
  [ "${#PHASES[@]}" -gt 0 ] || return 0
  printf '\n%-34s %8s\n' phase seconds
  local i
  for i in "${!PHASES[@]}"; do printf '%-34s %8d\n' "${PHASES[$i]}" "${PHASE_SECONDS[$i]}"; done
  printf '%-34s %8d\n' total "$SECONDS"
}
trap phase_table EXIT
