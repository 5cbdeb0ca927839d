#!/usr/bin/env bash
# Does what run.sh does, and stays until the command ends: after a preemption it makes the TPU again, sets it up and starts the same command.
#
#   watch.sh [--dry-run] WORDS...    such as: watch.sh train coarse gs://BUCKET/clips --workdir gs://BUCKET/run
#
# Run it where nothing ends it, such as in tmux on a small machine. Its exit status is 0 once the command is done, and 1 once it is given up or stopped.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
source "$here/settings.sh"
source "$here/workers.sh"

while [[ "${1:-}" == -* ]]; do
  common_argument "$1"
  shift
done
(($# > 0)) || fail "no command: expected the words after musiclm, such as train coarse gs://BUCKET/clips --workdir gs://BUCKET/run"
check_settings

service="systemctl is-active musiclm || true"
if $dry_run; then # One round: the start, the questions of each minute, and what a preemption leads to.
  "$here/run.sh" --dry-run "$@"
  state
  on_workers 0 "$service"
  for script in delete create setup; do "$here/$script.sh" --dry-run; done
  "$here/run.sh" --dry-run "$@"
  exit
fi

again() {
  started=false
  "$here/delete.sh" || true
  "$here/create.sh" || true
}

"$here/run.sh" "$@"
started=true
while sleep "${WATCH_SECONDS:-60}"; do
  current="$(state || true)"
  case "$current" in
    SUSPENDED | FAILED) again ;;
    "") $started || again ;; # None: create.sh failed. While the command runs, a question without an answer means nothing.
    ACTIVE)
      if ! $started; then
        if "$here/setup.sh" && "$here/run.sh" "$@"; then started=true; fi
        continue
      fi
      case "$(on_workers 0 "$service" || true)" in
        *inactive*) echo "$NAME: done" && exit ;;
        *failed*) echo "$NAME: the command was given up or stopped: see logs.sh" >&2 && exit 1 ;;
      esac
      ;;
  esac
done
