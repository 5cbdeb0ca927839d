"""T5X's programs on our stages, and the conversion of weights.

    python -m musiclm_jax.interop.t5x train --gin_file=models/base.gin --gin_file=t5x/semantic.gin --gin.MODEL_DIR=\\"out\\" ...
    python -m musiclm_jax.interop.t5x eval|infer ...
    python -m musiclm_jax.interop.t5x to_bundle out/checkpoint_1000 --model run/export/bundle --stage semantic --out bundle
    python -m musiclm_jax.interop.t5x from_bundle run/export/bundle --stage semantic --model_dir out

The first three are T5X's own train.py, eval.py and infer.py with their options. Before, the hosts of a TPU slice or a cluster find each other, which
T5X leaves to its caller except on GPUs; elsewhere --coordinator_address, --process_count and --process_index say who they are.
"""

from __future__ import annotations

import argparse
import importlib.util
import runpy
import sys
from collections.abc import Sequence

from musiclm_jax.errors import UserError
from musiclm_jax.folders import gin_folder

_PROGRAMS = ("train", "eval", "infer")


def main(arguments: Sequence[str]) -> None:
    """Runs one command. Raises UserError where it cannot."""
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    if options.command in _PROGRAMS:
        return _run_program(options, rest)
    if rest:
        parser.error(f"unknown: {' '.join(rest)}")
    from musiclm_jax.interop.t5x import checkpoints

    if options.command == "to_bundle":
        checkpoints.to_bundle(options.checkpoint, model=options.model, stage=options.stage, out=options.out)
    else:
        print(checkpoints.from_bundle(options.model, stage=options.stage, model_dir=options.model_dir))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m musiclm_jax.interop.t5x", allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in _PROGRAMS:
        program = commands.add_parser(name, allow_abbrev=False, add_help=False, help=f"T5X's {name}.py, with its options")
        program.add_argument("--coordinator_address")
        program.add_argument("--process_count", type=int)
        program.add_argument("--process_index", type=int)
    to_bundle = commands.add_parser("to_bundle", help="writes a stage from a checkpoint of T5X, with the other models of a bundle")
    to_bundle.add_argument("checkpoint")
    from_bundle = commands.add_parser("from_bundle", help="writes a stage of a bundle as a checkpoint of T5X")
    from_bundle.add_argument("model")
    for command, options in ((to_bundle, ("--model", "--stage", "--out")), (from_bundle, ("--stage", "--model_dir"))):
        for option in options:
            command.add_argument(option, required=True)
    return parser


def _run_program(options: argparse.Namespace, rest: Sequence[str]) -> None:
    """One of T5X's programs, as `python -m t5x.NAME` would run it, after our gin file of that name."""
    if not all(map(importlib.util.find_spec, ("t5x", "airio", "jestimator", "seqio"))):
        raise UserError('T5X is not installed: pip install ".[t5x]" && pip install --no-deps -r requirements/t5x.txt')
    if {"-h", "--help", "--helpshort"}.isdisjoint(rest):
        _connect(options)
    sys.argv = [f"t5x.{options.command}", f"--gin_search_paths={gin_folder()}", f"--gin_file=t5x/{options.command}.gin", *rest]
    runpy.run_module(f"t5x.{options.command}", run_name="__main__", alter_sys=True)


def _connect(options: argparse.Namespace) -> None:
    """Connects the processes of a run, if it has several. JAX finds them on TPUs, SLURM, Open MPI and Kubernetes."""
    import jax

    named = {"coordinator_address": options.coordinator_address, "num_processes": options.process_count, "process_id": options.process_index}
    try:
        jax.distributed.initialize(**named)
    except ValueError as error:
        if "coordinator_address should be defined" not in str(error):
            raise
        if any(value is not None for value in named.values()):
            raise UserError("--process_count and --process_index need --coordinator_address=HOST:PORT, the same for all processes") from None


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        print(f"musiclm: {str(error).splitlines()[0]}", file=sys.stderr)
        sys.exit(2)
