#!/usr/bin/env bash
# Starts a musiclm command on all workers of the TPU of the settings (docs/tpu.md), as a service that needs no terminal.
#
#   run.sh [--dry-run] WORDS...    such as: run.sh train coarse gs://BUCKET/clips --workdir gs://BUCKET/run
#   run.sh [--dry-run] --stop      the command saves a checkpoint and ends
#
# A service that fails is started again, also after a reboot; after ten starts within an hour it stays down. watch.sh sees to preemptions.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
source "$here/settings.sh"
source "$here/workers.sh"

stop=false
while [[ "${1:-}" == -* ]]; do
  if [[ "$1" == --stop ]]; then stop=true; else common_argument "$1"; fi
  shift
done
$stop || (($# > 0)) || fail "no command: expected the words after musiclm, such as train coarse gs://BUCKET/clips --workdir gs://BUCKET/run"
! $stop || (($# == 0)) || fail "unexpected words after --stop: $*"
check_settings

if $stop; then
  on_workers all "sudo systemctl disable --now musiclm"
  exit
fi
on_workers all "set -e
cat > musiclm.sh <<'END'
exec musiclm/bin/musiclm$(printf ' %q' "$@")
END
sudo tee /etc/systemd/system/musiclm.service > /dev/null <<END
[Unit]
Wants=network-online.target
After=network-online.target
StartLimitIntervalSec=3600
StartLimitBurst=10
[Service]
User=\$USER
WorkingDirectory=\$HOME
Environment=PYTHONUNBUFFERED=1 JAX_PLATFORMS=tpu,cpu
ExecStart=/bin/bash musiclm.sh
Restart=on-failure
RestartSec=30
TimeoutStopSec=600
LimitMEMLOCK=infinity
LimitNOFILE=1048576
[Install]
WantedBy=multi-user.target
END
sudo systemctl daemon-reload
sudo systemctl enable --quiet musiclm
sudo systemctl reset-failed musiclm || true
sudo systemctl restart musiclm"
