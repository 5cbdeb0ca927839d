#!/usr/bin/env bash
# Asks Google Cloud for the TPU that the settings describe (docs/tpu.md). From its start to delete.sh it costs money.
#
#   create.sh [--dry-run]
#
# The queue may take hours: setup.sh waits for the TPU.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
source "$here/settings.sh"

for word in "$@"; do common_argument "$word"; done
check_settings
[[ "${SPOT:=0}" =~ ^[01]$ ]] || fail "SPOT=$SPOT: expected 1 or 0"
read -ra flags <<< "${CREATE_FLAGS:-}"

if [[ "$BACKEND" == queued ]]; then
  case "$generation" in
    v4) runtime=tpu-ubuntu2204-base ;;
    v5litepod) runtime=v2-alpha-tpuv5-lite ;;
    v5p) runtime=v2-alpha-tpuv5 ;;
    v6e) runtime=v2-alpha-tpuv6e ;;
  esac
  nodes=("--node-id=$NAME")
  if ((SLICES > 1)); then nodes=("--node-count=$SLICES" "--node-prefix=$NAME"); fi
  if [[ "$SPOT" == 1 ]]; then flags+=(--spot); fi
  if [[ -n "${VALID_FOR:-}" ]]; then flags+=("--valid-until-duration=$VALID_FOR"); fi
  execute gcloud compute tpus queued-resources create "$NAME" "${nodes[@]}" "--accelerator-type=$ACCELERATOR" "--runtime-version=$runtime" \
    "--project=$PROJECT" "--zone=$ZONE" "${flags[@]}"
  exit
fi

[[ -z "${VALID_FOR:-}" ]] || fail "VALID_FOR=$VALID_FOR: a group has no time limit for its request: unset it"
image=ubuntu-accel-2204-amd64-tpu-v5e-v5p-v6e
case "$generation" in
  v5p) machine=ct5p-hightpu-4t ;;
  v6e) machine=ct6e-standard-4t ;;
  tpu7x) machine=tpu7x-standard-4t image=ubuntu-accel-2404-amd64-tpu-tpu7x ;;
esac
if [[ "$SPOT" == 1 ]]; then flags+=(--provisioning-model=SPOT --instance-termination-action=STOP); fi
execute gcloud compute instance-templates create "$NAME" "--project=$PROJECT" "--machine-type=$machine" --maintenance-policy=TERMINATE \
  "--image-family=$image" --image-project=ubuntu-os-accelerator-images --boot-disk-size=200GB --scopes=cloud-platform "${flags[@]}"
group=("--size=$((chips / 4))" "--template=$NAME" --default-action-on-vm-failure=do-nothing)
if ((chips > 4)); then # Several machines are one slice by a policy, and are made all at once.
  region="${ZONE%-*}"
  execute gcloud compute resource-policies create workload-policy "$NAME" "--project=$PROJECT" "--region=$region" --type=HIGH_THROUGHPUT \
    "--accelerator-topology=$topology"
  group+=("--workload-policy=projects/$PROJECT/regions/$region/resourcePolicies/$NAME" --target-size-policy-mode=bulk)
fi
execute gcloud compute instance-groups managed create "$NAME" "--project=$PROJECT" "--zone=$ZONE" "${group[@]}"
