# shellcheck shell=bash disable=SC2034,SC2154 # Variables are set in one file and read in another.
# Shared by the scripts: their arguments and settings, which are variables of the environment (docs/tpu.md), and --dry-run.
set -euo pipefail

dry_run=false

fail() { # MESSAGE: an error of the user, in one line.
  printf '%s: %s\n' "$(basename "$0")" "$1" >&2
  exit 2
}

common_argument() { # WORD
  case "$1" in
    --dry-run) dry_run=true ;;
    -h | --help) sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0" && exit ;; # The comment at the script's beginning.
    *) fail "unknown argument $1: see $(basename "$0") --help" ;;
  esac
}

execute() { # COMMAND...: runs it, or prints it with --dry-run, as it could be pasted into a shell.
  if ! $dry_run; then
    "$@"
    return
  fi
  local word line="" quote="'"
  for word in "$@"; do
    [[ "$word" =~ ^[A-Za-z0-9_./:=,@+-]+$ ]] || word="'${word//$quote/$quote\\$quote$quote}'"
    line+=" $word"
  done
  printf '%s\n' "${line# }"
}

check_settings() {
  local variable
  for variable in BACKEND NAME PROJECT ZONE ACCELERATOR; do
    [[ -n "${!variable:-}" ]] || fail "$variable is not set: docs/tpu.md lists the settings"
  done
  [[ "$NAME" =~ ^[a-z][a-z0-9-]*$ ]] || fail "NAME=$NAME: expected lower-case letters, digits and dashes, with a letter first"
  [[ "${SLICES:=1}" =~ ^[1-9][0-9]*$ ]] || fail "SLICES=$SLICES: expected a whole number from 1"
  if [[ "$BACKEND" == queued ]]; then
    [[ "$ACCELERATOR" =~ ^(v4|v5litepod|v5p|v6e)-[1-9][0-9]*$ ]] ||
      fail "ACCELERATOR=$ACCELERATOR: with BACKEND=queued expected v4, v5litepod, v5p or v6e, and a size, such as v5litepod-8"
    generation="${BASH_REMATCH[1]}"
  elif [[ "$BACKEND" == mig ]]; then
    [[ "$ACCELERATOR" =~ ^(v5p|v6e|tpu7x)-([1-9][0-9]*(x[1-9][0-9]*){1,2})$ ]] ||
      fail "ACCELERATOR=$ACCELERATOR: with BACKEND=mig expected v5p, v6e or tpu7x, and a topology, such as tpu7x-2x2x2"
    generation="${BASH_REMATCH[1]}"
    topology="${BASH_REMATCH[2]}"
    chips="$((${topology//x/*}))"
    ((chips % 4 == 0)) || fail "ACCELERATOR=$ACCELERATOR: expected a multiple of 4 chips, since a machine has 4"
    [[ "$SLICES" == 1 ]] || fail "SLICES=$SLICES: BACKEND=mig makes one slice: use BACKEND=queued or GKE for more"
  else
    fail "BACKEND=$BACKEND: expected queued or mig"
  fi
  where=("--project=$PROJECT" "--zone=$ZONE")
  read -ra ssh_flags <<< "${SSH_FLAGS:-}"
  $dry_run || command -v gcloud > /dev/null || fail "gcloud is not on PATH: install the Google Cloud CLI, or use --dry-run"
}
