# shellcheck shell=bash disable=SC2034,SC2154 # Variables are set in one file and read in another.
# Shared by the scripts: the state of the TPU, and commands and files on its workers. Reads what check_settings of settings.sh sets.

queued=(gcloud compute tpus queued-resources)
mig=(gcloud compute instance-groups managed)

state() { # Prints ACTIVE, SUSPENDED (preempted), FAILED, another word while the TPU is being made, or nothing where there is none.
  if [[ "$BACKEND" == queued ]]; then
    execute "${queued[@]}" describe "$NAME" "${where[@]}" "--format=value(state.state)"
    return
  fi
  local list=("${mig[@]}" list-instances "$NAME" "${where[@]}" "--format=value(instanceStatus)") found
  if $dry_run; then
    execute "${list[@]}"
  elif found="$("${list[@]}")"; then
    case "$found" in
      *STOPP* | *TERMINATED*) echo SUSPENDED ;;
      *) if [[ "$(grep -c '^RUNNING$' <<< "$found")" == "$((chips / 4))" ]]; then echo ACTIVE; else echo PROVISIONING; fi ;;
    esac
  fi
}

each_vm() { # COMMAND...: runs it for all machines of the group at once. VM in its words stands for a machine's name, as --dry-run prints it.
  local list=("${mig[@]}" list-instances "$NAME" "${where[@]}" "--format=value(instance.basename())") vms vm pids=() pid failed=0
  if $dry_run; then
    execute "${list[@]}"
    execute "$@"
    return
  fi
  vms="$("${list[@]}")"
  [[ -n "$vms" ]] || { echo "the group $NAME has no machines" >&2 && return 1; }
  for vm in $vms; do
    "${@/#VM/$vm}" &
    pids+=("$!")
  done
  for pid in "${pids[@]}"; do wait "$pid" || failed=1; done
  return "$failed"
}

on_workers() { # all|0 COMMAND: runs a shell command on all workers, or on the first one of the first slice.
  if [[ "$BACKEND" == queued ]]; then
    execute "${queued[@]}" ssh "$NAME" "${where[@]}" "--worker=$1" "--node=$1" "${ssh_flags[@]}" "--command=$2"
  elif [[ "$1" == all ]]; then
    each_vm gcloud compute ssh VM "${where[@]}" "${ssh_flags[@]}" "--command=$2"
  else # The machines know their number, their names do not say it.
    local number="curl -s -H Metadata-Flavor:Google http://metadata.google.internal/computeMetadata/v1/instance/attributes/agent-worker-number"
    each_vm gcloud compute ssh VM "${where[@]}" "${ssh_flags[@]}" "--command=[ \"\$($number)\" != 0 ] || { $2; }"
  fi
}

copy_to_workers() { # FILE: copies it into the home of all workers.
  if [[ "$BACKEND" == queued ]]; then
    execute "${queued[@]}" scp "$1" "$NAME:" "${where[@]}" --worker=all --node=all "${ssh_flags[@]}"
  else
    each_vm gcloud compute scp "$1" VM: "${where[@]}" "${ssh_flags[@]}"
  fi
}
