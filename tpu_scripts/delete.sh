#!/usr/bin/env bash
# Deletes what create.sh made for the settings (docs/tpu.md): the TPU, its machines and their disks. It touches no bucket.
#
#   delete.sh [--dry-run]
#
# Without a question: what stands only on the machines' disks is lost.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
source "$here/settings.sh"

for word in "$@"; do common_argument "$word"; done
check_settings

if [[ "$BACKEND" == queued ]]; then
  execute gcloud compute tpus queued-resources delete "$NAME" "--project=$PROJECT" "--zone=$ZONE" --force --quiet
  exit
fi
# One that is missing, after a create.sh that failed half way, must not keep the others.
failed=0
execute gcloud compute instance-groups managed delete "$NAME" "--project=$PROJECT" "--zone=$ZONE" --quiet || failed=1
execute gcloud compute instance-templates delete "$NAME" "--project=$PROJECT" --quiet || failed=1
if ((chips > 4)); then
  execute gcloud compute resource-policies delete "$NAME" "--project=$PROJECT" "--region=${ZONE%-*}" --quiet || failed=1
fi
exit "$failed"
