import io
import subprocess
import sys
import time

import pytest

from musiclm_jax import cli
from musiclm_jax.errors import UserError
from musiclm_jax.progress import ProgressLine


def run(*args, capsys):
    """(status, stdout, stderr) of `musiclm *args`, in this process."""
    with pytest.raises(SystemExit) as exit_info:
        cli.main([str(arg) for arg in args])
    captured = capsys.readouterr()
    return exit_info.value.code or 0, captured.out, captured.err


# ------------------------------------------------------------------ mistakes

MISTAKES = [
    # (arguments, what the message must name)
    ([], "PROMPT"),
    ([""], "empty"),
    (["  \n "], "empty"),
    (["fine", ""], "prompt 2"),
    (["x", "--seconds", "0"], "seconds"),
    (["x", "--seconds", "-5"], "seconds"),
    (["x", "--seconds", "nan"], "seconds"),
    (["x", "--seconds", "inf"], "seconds"),
    (["x", "--seconds", "100000"], "seconds"),
    (["x", "--seconds", "ten"], "seconds"),
    (["x", "--seed", "-1"], "seed"),
    (["x", "--seed", "4294967296"], "seed"),
    (["x", "--seed", "1.5"], "seed"),
    (["x", "--samples", "0"], "samples"),
    (["x", "--temperature", "hot"], "hot"),
    (["x", "--temperature", "violin=1"], "violin"),
    (["x", "--temperature", "-1"], "temperature"),
    (["x", "--temperature", "nan"], "temperature"),
    (["x", "--top-k", "1.5"], "1.5"),
    (["x", "--top-k", "fine=-3"], "top"),
    (["x", "--model", "no/such/model"], "no/such/model"),
    (["x", "--out", "no/such/folder/a.wav"], "no/such/folder"),
    (["x", "--out", "a.mp3"], "a.mp3"),
    (["x", "--out", "."], "."),
    (["x", "--loudness", "3"], "--loudness"),
]


@pytest.mark.parametrize("arguments, names", MISTAKES, ids=[" ".join(m[0]).strip() or "nothing" for m in MISTAKES])
def test_a_mistake_is_one_line_and_status_2(arguments, names, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, out, err = run("generate", *arguments, capsys=capsys)
    assert status == 2
    assert err.count("\n") == 1 and err.startswith("musiclm: ") and names in err, err
    assert out == "" and list(tmp_path.iterdir()) == []


def test_unknown_command(capsys):
    status, _, err = run("generat", capsys=capsys)
    assert status == 2 and "generat" in err and err.count("\n") == 1


def test_interrupt_is_quiet(capsys, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("musiclm_jax.data.corpus.make_corpus", interrupted)
    status, out, err = run("corpus", "somewhere", capsys=capsys)
    assert (status, out, err.strip()) == (130, "", "")  # click ends the line in which the terminal shows ^C.


def test_a_long_error_message_is_still_one_line(capsys, monkeypatch):
    def fails(*args, **kwargs):
        raise UserError("one\n  two")

    monkeypatch.setattr("musiclm_jax.data.corpus.make_corpus", fails)
    assert run("corpus", "somewhere", capsys=capsys) == (2, "", "musiclm: one two\n")


# --------------------------------------------------------------------- parts


def test_numbered():
    from pathlib import Path

    assert cli.numbered(Path("a/b.wav"), 1) == [Path("a/b.wav")]
    assert cli.numbered(Path("a/b.wav"), 3) == [Path("a/b-1.wav"), Path("a/b-2.wav"), Path("a/b-3.wav")]


def test_per_stage_options_merge():
    convert = lambda text, number: cli.PerStage(number).convert(text, None, None)  # noqa: E731
    temperatures = (convert("0.9", float), convert("fine=0.4", float))
    assert cli.overrides(temperature=temperatures, top_k=(convert("fine=64", int),)) == {
        "semantic": {"temperature": 0.9},
        "coarse": {"temperature": 0.9},
        "fine": {"temperature": 0.4, "top_k": 64},
    }


@pytest.mark.parametrize("arguments", [[], ["--help"], ["generate", "--help"], ["evaluate", "--help"], ["--version"]])
def test_help(arguments, capsys):
    status, out, err = run(*arguments, capsys=capsys)
    assert (status, err) == (0, "") and "musiclm" in out


def test_help_and_import_are_light():
    """No JAX before a command needs it."""
    program = "import sys, musiclm_jax, musiclm_jax.cli; sys.exit('jax' in sys.modules or 'numpy' in sys.modules)"
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", program], check=True)
    assert time.perf_counter() - began < 5  # 0.2 s on an idle machine; this only catches the absurd.


def test_cache_folder_that_cannot_be_written(tmp_path, monkeypatch):
    import jax

    (tmp_path / "file").write_text("")
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    before = jax.config.jax_compilation_cache_dir
    for place in (str(tmp_path / "file" / "cache"), ""):
        monkeypatch.setenv("MUSICLM_CACHE_DIR", place)
        cli._use_compilation_cache()
    assert jax.config.jax_compilation_cache_dir == before


# ------------------------------------------------------------------ progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_on_a_terminal_is_one_line_per_stage():
    stream, now = Terminal(), [0.0]
    line = ProgressLine(stream, clock=lambda: now[0])
    for second, done in ((0, 0), (5, 50), (7, 90), (8, 100)):  # 5 s of compilation; then 20 tokens/s.
        now[0] = second
        line("semantic", done, 100)
    parts = stream.getvalue().split("\r")
    assert parts[1].strip() == "semantic     0/100 tokens"
    assert "90/100 tokens, 20 tokens/s, 0 s left" in parts[3]
    assert parts[4].rstrip(" ") == "semantic     100 tokens in 8.0 s (12 tokens/s)\n" or "100 tokens in 8.0 s" in parts[4]
    assert len(parts[4].rstrip("\n")) >= len(parts[3].rstrip())  # The last line covers the one before.
    assert stream.getvalue().count("\n") == 1


def test_progress_in_a_log_is_plain_lines():
    stream, now = io.StringIO(), [0.0]
    line = ProgressLine(stream, clock=lambda: now[0])
    for second in range(0, 26):
        now[0] = float(second)
        line("coarse", second * 4, 100)
    lines = stream.getvalue().splitlines()
    assert "\r" not in stream.getvalue() and len(lines) == 3
    assert lines[0].startswith("coarse       40/100 tokens, 4 tokens/s, 15 s left") and "100 tokens in 25.0 s" in lines[2]


def test_progress_clears_an_open_line():
    stream = Terminal()
    line = ProgressLine(stream, clock=lambda: 0.0)
    line("fine", 1, 9)
    line.clear()
    assert stream.getvalue().endswith(" \r")
    line.clear()
    assert stream.getvalue().count(" \r") == 1
