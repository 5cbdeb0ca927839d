#!/usr/bin/env bash
# Waits for the TPU of the settings (docs/tpu.md) and installs this project on all of its workers.
#
#   setup.sh [--dry-run]
#
# It installs the last commit of this checkout, or what pip can fetch from SOURCE, such as SOURCE=git+https://HOST/musiclm_jax.git@main.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
source "$here/settings.sh"
source "$here/workers.sh"

for word in "$@"; do common_argument "$word"; done
check_settings

if $dry_run; then
  state
else
  until current="$(state)" && [[ "$current" == ACTIVE ]]; do
    case "$current" in
      FAILED | SUSPENDED | "") echo "$NAME is not there (${current:-no state}): run delete.sh, then create.sh" >&2 && exit 1 ;;
    esac
    printf '%s %s: %s\n' "$(date +%T)" "$NAME" "$current"
    sleep 30
  done
fi

package="musiclm-jax[train,tpu] @ ${SOURCE:-}"
if [[ -z "${SOURCE:-}" ]]; then
  root="$(dirname "$here")"
  archive="$root/build/musiclm_jax.tar.gz"
  execute mkdir -p "$root/build"
  execute git -C "$root" archive --prefix=musiclm_jax/ "--output=$archive" HEAD
  copy_to_workers "$archive"
  package="./musiclm_jax[train,tpu]"
fi

# The machines' own Python is 3.10 on Ubuntu 22.04, which is too old: uv brings one of its own. gcsfs is for paths gs://.
on_workers all "set -e
if [ -f musiclm_jax.tar.gz ]; then rm -rf musiclm_jax; tar -xzf musiclm_jax.tar.gz; fi
curl -LsSf https://astral.sh/uv/install.sh | sh
.local/bin/uv venv --quiet --allow-existing --python 3.12 musiclm
.local/bin/uv pip install --python musiclm/bin/python --reinstall-package musiclm-jax '$package' 'etils[epath-gcs]'
musiclm/bin/musiclm --version"
