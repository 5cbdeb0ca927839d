#!/usr/bin/env bash
# Follows the log of what run.sh started (docs/tpu.md), until Ctrl-C, which ends the log alone.
#
#   logs.sh [--dry-run] [--all]
#
# It is the first worker's log; with --all, those of all workers, mixed.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
source "$here/settings.sh"
source "$here/workers.sh"

worker=0
for word in "$@"; do
  if [[ "$word" == --all ]]; then worker=all; else common_argument "$word"; fi
done
check_settings
on_workers "$worker" "sudo journalctl --unit=musiclm --lines=100 --follow --output=cat"
