# Sourced by the scripts beside it: steps that all run, though one fails; a summary at the end; tries for what needs a network.

# Announce and run a command; remember how it ended. A failure does not stop the script: call `summary` last.
FAILED=() PASSED=0
step() { # NAME COMMAND...
  local name=$1 began=$SECONDS code=0
  shift
  printf '\n== %s\n' "$name"
  set +e # and not `|| code=$?`, in which bash would ignore the `set -e` of a function
  (set -e; "$@")
  code=$?
  set -e
  if ((code)); then FAILED+=("$name"); else PASSED=$((PASSED + 1)); fi
  printf -- '-- %s: %s (%d s)\n' "$name" "$( ((code)) && echo "FAILED with exit code $code" || echo ok)" $((SECONDS - began))
}

# Say which steps failed; non-zero if any did.
summary() {
  printf '\n== steps: %d ok, %d failed\n' "$PASSED" "${#FAILED[@]}"
  ((${#FAILED[@]} == 0)) || { printf 'FAILED: %s\n' "${FAILED[@]}"; return 1; }
}

# Run a command up to three times: registries and mirrors are away for a moment now and then.
retry() { # COMMAND...
  local try
  for try in 1 2 3; do
    "$@" && return
    echo "try $try of 3 failed: $*" >&2
    ((try == 3)) || sleep $((try * ${RETRY_PAUSE:-5}))
  done
  return 1
}
