"""Work over many shards with Apache Beam: on this machine, or on any of Beam's runners."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Sequence
from typing import TypeVar

from musiclm_jax.errors import UserError

Job = TypeVar("Job")


def run_jobs(jobs: Sequence[Job], work: Callable[[Job], None], *, flags: Sequence[str] = ()) -> None:
    """Calls work(job) for each job, on the workers of the runner that `flags` choose; without flags in this process, one after the other.

    Args:
        jobs: picklable.
        work: a picklable function. What it makes, it writes itself.
        flags: options of Beam, such as "--runner=DataflowRunner".

    Raises:
        UserError: Beam is missing, or does not know a flag.
    """
    try:
        import apache_beam
        from apache_beam.options.pipeline_options import PipelineOptions
    except ModuleNotFoundError as error:
        raise UserError(f"this needs the package {error.name}; install it with: pip install 'musiclm-jax[tfdata]'") from error
    _check_flags(flags, PipelineOptions)
    for name in ("root", "apache_beam"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with apache_beam.Pipeline(options=PipelineOptions(list(flags))) as pipeline:
        # Reshuffling keeps a runner from fusing all jobs into one.
        _ = pipeline | apache_beam.Create(list(jobs)) | apache_beam.Reshuffle() | apache_beam.Map(work)


def _check_flags(flags: Sequence[str], options: type) -> None:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for group in options.__subclasses__():
        group._add_argparse_args(parser)
    try:
        _, unknown = parser.parse_known_args(list(flags))
    except argparse.ArgumentError as error:
        raise UserError(f"{error}: see the options of Apache Beam's runners") from error
    if unknown:
        raise UserError(f"no such option: {unknown[0]}; what this command does not know must be an option of Apache Beam, such as --runner=DirectRunner")
