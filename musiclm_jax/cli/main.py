"""The `musiclm` command. Each subcommand checks its input, calls one function of the library and prints the result.

Heavy modules are imported inside the commands, so that `musiclm --help` is fast. An error of the user is printed as one line on stderr, with exit status 2.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys

import click

import musiclm_jax
from musiclm_jax import buckets
from musiclm_jax.cli.bundles import export, info
from musiclm_jax.cli.corpus import corpus
from musiclm_jax.cli.data import data
from musiclm_jax.cli.evaluate import evaluate
from musiclm_jax.cli.generate import generate
from musiclm_jax.cli.live import live
from musiclm_jax.cli.tokenize import tokenize
from musiclm_jax.cli.training import fit, train
from musiclm_jax.errors import UserError

# Largest length of an error message, in characters. Longer ones, such as those that repeat a long input, are shortened in the middle.
_LONGEST = 2000
_NO_MEMORY = "not enough memory; make fewer or shorter clips at once, or train with a lower batch_size or crop_sec"


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(musiclm_jax.__version__, prog_name="musiclm")
def cli() -> None:
    """MusicLM in JAX: music from text, and everything needed to train it."""


for command in (generate, live, fit, train, tokenize, export, info, corpus, data, evaluate):
    cli.add_command(command)


def main(argv: list[str] | None = None) -> None:
    """Runs the command line and exits with status 0 (done), 2 (an error of the user or the machine) or 130 (Ctrl-C).

    argv: the arguments; None: those of the process.
    """
    try:
        _run(argv)
    except BaseException as error:
        if hosts := sys.modules.get("musiclm_jax.training.hosts"):
            hosts.leave(error)
        raise


def _run(argv: list[str] | None) -> None:
    if argv is None:
        signal.signal(signal.SIGINT, _stop)
    with contextlib.suppress(AttributeError):  # Characters that the terminal cannot write are printed as escapes.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        sys.exit(cli.main(args=argv, prog_name="musiclm", standalone_mode=False))
    except UserError as error:
        _fail(str(error))
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        sys.exit(0)
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx else "musiclm"
        _fail(f"{error.format_message()} See `{command} --help`.")
    except click.ClickException as error:
        _fail(error.format_message())
    except (click.Abort, KeyboardInterrupt):
        sys.exit(130)  # The status with which shells report Ctrl-C.
    except BrokenPipeError:  # `musiclm ... | head` closed the pipe. With devnull, Python's flush at exit does not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        if error.errno is None:
            _fail_at_store(error)
        remedy = "free some space and run the same command again" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "check the path and its permissions"
        _fail(f"{error.filename or 'a file'}: {error.strerror}: {remedy}")
    except ModuleNotFoundError as error:
        if not error.name or error.name.split(".")[0] == "musiclm_jax":
            raise
        _fail(f"the package {error.name} is missing; install the optional packages of musiclm-jax with: pip install 'musiclm-jax[train,eval]'")
    except MemoryError:
        _fail(_NO_MEMORY)
    except RuntimeError as error:
        if message := _explain_runtime_error(str(error)):
            _fail(message)
        raise
    except Exception as error:
        _fail_at_store(error)


def _stop(number, frame) -> None:
    """Ends the process on Ctrl-C. An exception would be lost, or end in a crash, where XLA calls Python. Unfinished files are never in their places."""
    os.write(2, b"\nmusiclm: stopped\n")
    os._exit(128 + number)


def _explain_runtime_error(error: str) -> str | None:
    """The message for a RuntimeError of JAX about memory or devices; None: another kind of error."""
    if "RESOURCE_EXHAUSTED" in error or "Out of memory" in error:
        return _NO_MEMORY
    if "Gloo" in error or "coordination service" in error:
        reason = " ".join(error.split())[:300]
        return f"another process of this training has ended, and its log says why, or cannot be reached ({reason}): start all again, and they continue"
    if "Unable to initialize backend" in error or "Unknown backend" in error:
        platforms = os.environ.get("JAX_PLATFORMS", "")
        return f"JAX finds no device of JAX_PLATFORMS={platforms!r}: leave it unset, or set it to cpu"
    return None


def _fail_at_store(error: Exception) -> None:
    """Prints the message for an error of an object store. Raises any other error again."""
    message = buckets.explain(error)
    if message is None:
        raise error
    _fail(message)


def _fail(message: str) -> None:
    line = " ".join(message.split())
    click.echo("musiclm: " + (line if len(line) <= _LONGEST else f"{line[: _LONGEST // 2]} ... {line[-_LONGEST // 2 :]}"), err=True)
    sys.exit(2)


if __name__ == "__main__":
    main()
