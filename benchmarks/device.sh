#!/usr/bin/env bash
# What one GPU does, in about ten minutes: tests of the models and the sampler, decoding and training steps at the size base. `benchmarks/device.sh OUT [WHEELS]`
#
# OUT       the results, one JSON file; partial ones stay if it is stopped
# WHEELS    a folder of wheels for a machine without a network, made elsewhere by
#           pip download -d WHEELS --python-version 3.12 --only-binary=:all: gin-config soundfile soxr pytest jaxtyping beartype
#
# Needs Python with jax for the GPU, flax, optax and orbax-checkpoint; PyTorch is compared with where it is installed. TESTS=0 leaves out the tests.
set -euo pipefail

out="${1:?usage: benchmarks/device.sh OUT [WHEELS]}"
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [[ -n "${2:-}" ]]; then
  python -m pip install --quiet --no-index --find-links "$2" gin-config soundfile soxr pytest jaxtyping beartype
fi
export PYTHONPATH="$PWD" XLA_PYTHON_CLIENT_MEM_FRACTION=0.92
lines="$(mktemp)"
trap 'rm -f "$lines"' EXIT

# measure NAME COMMAND...: the lines of JSON that the command prints, under NAME, into OUT.
measure() {
  local name="$1" began=$SECONDS
  shift
  echo "+ $*"
  { "$@" || echo "{\"error\": \"exit status $?: $*\"}"; } | tee "$lines"
  python - "$out" "$name" "$lines" $((SECONDS - began)) <<'PYTHON'
import json, pathlib, sys

out, name, lines, seconds = pathlib.Path(sys.argv[1]), *sys.argv[2:]
found = json.loads(out.read_text()) if out.exists() else {}
rows = [json.loads(line) for line in open(lines) if line.startswith("{")]
found[name] = {"seconds": int(seconds), "rows": rows}
out.write_text(json.dumps(found, indent=1) + "\n")
PYTHON
}

# Products in whole float32: the tolerances of the tests are for those.
tests() {
  local log
  log="$(JAX_PLATFORMS=cuda JAX_DEFAULT_MATMUL_PRECISION=highest timeout 240 python -m pytest -q -x --no-header -p no:cacheprovider -p no:xdist \
    tests/models/test_stage.py tests/nn/test_transformer.py tests/nn/test_attention.py tests/generation/test_sampler.py 2>&1)" || true
  printf '%s\n' "$log" >&2
  tail -n 1 <<< "$log" | python -c 'import json, sys; print(json.dumps({"pytest": sys.stdin.read().strip()}))'
}

rm -f "$out"
fused=(--set "attention_kernel='cudnn'" --set attention_dropout=0.0 --set "remat='products'")
measure decode python benchmarks/decode_stage.py semantic:1 semantic:8 semantic:64 coarse:1 coarse:8
measure stages python benchmarks/train_step.py semantic:64 coarse:16 fine:16 "${fused[@]}"
measure parts python benchmarks/train_step.py codec:64 w2v_bert:8 mulan:64 melody:256
if python -c "import torch" 2> /dev/null; then
  measure ours_beside_torch python benchmarks/train_step.py coarse:8 "${fused[@]}"
  measure torch python benchmarks/train_step.py coarse:8 --torch "${fused[@]}"
fi
[[ "${TESTS:-1}" == 0 ]] || measure tests tests
echo "$out"
