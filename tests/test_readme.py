"""The README says only what works: its commands parse, its Python compiles, and CI runs its test command."""

import re
import shlex
import subprocess
from pathlib import Path

import click
import pytest

from musiclm_jax.cli.main import cli

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def block_after(marker):
    return re.search(rf"^<!-- {marker} -->\n```sh\n(.*?)\n```$", README, re.MULTILINE | re.DOTALL).group(1)


def test_ci_runs_the_readmes_test_command():
    printed = subprocess.run([ROOT / ".ci" / "run", "--print"], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == block_after("test")
    assert "\n" not in block_after("test") and "pytest" in block_after("test")


def test_both_commands_start_in_a_fresh_environment():
    for marker in ("generate", "test"):
        assert block_after(marker).startswith("python3 -m venv .venv && . .venv/bin/activate && pip install ")


def commands():
    """Every `musiclm ...` of the README's shell blocks and of its text."""
    texts = [part for block in blocks("sh") for line in block.splitlines() for part in line.split("&&")]
    texts += re.findall(r"`(musiclm [^`]+)`", README)
    return sorted({text.strip() for text in texts if text.strip().startswith("musiclm ")})


@pytest.mark.parametrize("line", commands())
def test_commands_parse(line):
    command, words = cli, shlex.split(line)[1:]
    context = click.Context(cli, info_name="musiclm")
    while isinstance(command, click.Group) and words:
        name, command, words = command.resolve_command(context, words)
    complete = len(words) > 0 and "--help" not in words
    if complete:
        command.make_context(name, words, parent=context)


def test_python_compiles():
    assert blocks("python")
    for block in blocks("python"):
        compile(block, "README.md", "exec")


def test_linked_files_exist():
    for target in re.findall(r"\]\((?!https?://|#)([^)]+)\)", README):
        assert (ROOT / target).exists(), target


def test_no_machine_paths():
    for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"):
        assert not re.search(r"/(home|root|tmp|work)/", (ROOT / name).read_text(encoding="utf-8")), name
