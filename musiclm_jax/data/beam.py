"""Work over many shards with Apache Beam: on this machine, or on any of Beam's runners."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Sequence
from types import ModuleType
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
        UserError: Beam is missing, does not know a flag, or cannot start its runner.
    """
    beam = _beam()
    try:
        pipeline = beam.Pipeline(options=beam.options.pipeline_options.PipelineOptions(list(flags)))
        # Reshuffling keeps a runner from fusing all jobs into one.
        _ = pipeline | beam.Create(list(jobs)) | beam.Reshuffle() | beam.Map(work)
        running = pipeline.run()
    except UserError:
        raise
    except Exception as error:  # A runner may raise any, before it starts or, in this process, from the work.
        if not flags:
            raise
        reason = " ".join((str(error).splitlines() or [type(error).__name__])[0].split())[:300]
        raise UserError(f"Apache Beam cannot run with {' '.join(flags)} ({reason}): see the options of that runner") from error
    running.wait_until_finish()


def check_flags(flags: Sequence[str]) -> None:
    """Raises UserError where Beam is missing, or does not know one of `flags`."""
    options = _beam().options.pipeline_options.PipelineOptions
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for group in options.__subclasses__():
        group._add_argparse_args(parser)
    try:
        _, unknown = parser.parse_known_args(list(flags))
    except argparse.ArgumentError as error:
        raise UserError(f"{error}: see the options of Apache Beam's runners") from error
    if unknown:
        raise UserError(f"no such option: {unknown[0]}; what this command does not know must be an option of Apache Beam, such as --runner=DirectRunner")


def _beam() -> ModuleType:
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)  # Beam warns of clients of Google that nothing needs.
    try:
        import apache_beam
        import apache_beam.options.pipeline_options
    except ModuleNotFoundError as error:
        raise UserError(f"this needs the package {error.name}; install it with: pip install 'musiclm-jax[tfdata]'") from error
    finally:
        root.setLevel(level)
    logging.getLogger("apache_beam").setLevel(logging.ERROR)
    return apache_beam
