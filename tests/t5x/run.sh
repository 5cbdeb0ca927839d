#!/usr/bin/env bash
# Runs the tests of T5X in a virtual environment: tests/t5x/run.sh [FOLDER of the environment, made if it is missing] [options of pytest]
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
venv=${1:-$root/build/t5x}
shift || true
if [[ ! -x $venv/bin/python ]]; then
  python3 -m venv "$venv"
  "$venv/bin/pip" install -e "${root}[t5x,test]"
  "$venv/bin/pip" install --no-deps -r "$root/requirements/t5x.txt"
fi
cd "$root"
exec env PYTHONPATH="$root:$root/tests:$root/tests/t5x" "$venv/bin/python" -m pytest tests/t5x -q -p no:cacheprovider "$@"
