import errno
import io
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from run_command import run
from tiny_musiclm import tiny_musiclm, with_melody

from musiclm_jax import pretrained
from musiclm_jax.cli import clips, options
from musiclm_jax.errors import UserError
from musiclm_jax.progress import ProgressLine

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
    (["x", "--seconds", "ten"], "seconds"),
    (["x", "--seed", "-1"], "seed"),
    (["x", "--seed", "4294967296"], "seed"),
    (["x", "--seed", "1.5"], "seed"),
    (["x", "--samples", "0"], "samples"),
    (["x", "--samples", "1000000"], "1000000 clips at once"),
    (["x", "--candidates", "0"], "candidates"),
    (["caf\udce9"], "UTF-8"),
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

    monkeypatch.setattr("musiclm_jax.corpus.make_corpus", interrupted)
    status, out, err = run("corpus", "somewhere", capsys=capsys)
    assert (status, out, err.strip()) == (130, "", "")  # click ends the line in which the terminal shows ^C.


def test_a_long_error_message_is_still_one_line(capsys, monkeypatch):
    def fails(*args, **kwargs):
        raise UserError("one\n  two")

    monkeypatch.setattr("musiclm_jax.corpus.make_corpus", fails)
    assert run("corpus", "somewhere", capsys=capsys) == (2, "", "musiclm: one two\n")


# ------------------------------------------------------------------ commands


def test_generate_writes_numbered_files_and_says_so(tiny_bundle, tmp_path, capsys):
    arguments = ["piano", "drums", "--seconds", "0.2", "--seed", "5", "--model", tiny_bundle]
    status, out, err = run("generate", *arguments, "--out", tmp_path / "song.wav", capsys=capsys)
    assert status == 0, err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["song-1.wav", "song-2.wav"]
    for number in (1, 2):
        info = soundfile.info(tmp_path / f"song-{number}.wav")
        assert (info.frames, info.samplerate, info.subtype) == (4800, 24_000, "PCM_16")
        assert f"{tmp_path / f'song-{number}.wav'}  0.20 s  seed 5" in out
    assert "real-time factor" in out
    # On a busy machine a stage may have more than one line.
    assert list(dict.fromkeys(line.split()[0] for line in err.splitlines())) == ["semantic", "coarse", "fine"]
    # The same again, under another name: the same bytes.
    run("generate", *arguments, "--out", tmp_path / "again.wav", capsys=capsys)
    assert (tmp_path / "song-2.wav").read_bytes() == (tmp_path / "again-2.wav").read_bytes()


def test_generate_warns_when_a_prompt_is_cut(tiny_bundle, tmp_path, capsys):
    prompt = "a calm piano melody in a minor key with a slow guitar"
    options = ["--seconds", "0.2", "--model", tiny_bundle, "--out", tmp_path / "a.wav"]
    status, _, err = run("generate", prompt, "drums", *options, capsys=capsys)
    assert status == 0 and "longer than the model reads" in err and "'a calm piano" in err and "up to '... " in err


@pytest.mark.parametrize("prompt, says", [("theremin", "knows no word of"), ("!!!", "knows no word of"), ("a Calm theremin", "does not know 'theremin'")])
def test_generate_says_which_words_the_model_does_not_know(tiny_bundle, tmp_path, capsys, prompt, says):
    status, _, err = run("generate", prompt, "--seconds", "0.1", "--model", tiny_bundle, "--out", tmp_path / "a.wav", capsys=capsys)
    assert status == 0 and says in err
    _, _, err = run("generate", "a calm piano melody", "--seconds", "0.1", "--model", tiny_bundle, "--out", tmp_path / "a.wav", capsys=capsys)
    assert "know" not in err


def test_words_that_are_spelled_alike_are_offered(tiny_bundle, tmp_path, capsys):
    options = ["--seconds", "0.1", "--model", tiny_bundle, "--out", tmp_path / "a.wav"]
    _, _, err = run("generate", "a calm paino", *options, capsys=capsys)
    assert "for 'paino' it knows piano" in err
    _, _, err = run("generate", "\U0001f3b8", *options, capsys=capsys)
    assert "knows no word of the prompt '\U0001f3b8'" in err and "it knows such words as" in err and "piano" in err


def test_generate_says_which_model_follows_melodies(tiny_bundle, tmp_path, capsys):
    status, _, err = run("generate", "piano", "--melody", tmp_path / "hum.wav", "--model", tiny_bundle, "--out", tmp_path / "a.wav", capsys=capsys)
    assert status == 2 and "follows no melody: choose a bundle for which" in err and len(err.splitlines()) == 1


def test_generate_follows_a_hum(tmp_path, capsys):
    tiny_musiclm(with_melody("semantic")).save_pretrained(tmp_path / "bundle")
    soundfile.write(tmp_path / "hum.wav", 0.3 * np.sin(np.arange(44_100) * 0.03), 44_100)
    soundfile.write(tmp_path / "silence.wav", np.zeros(44_100), 44_100)
    options = ["piano", "--seconds", "0.2", "--model", tmp_path / "bundle", "--out", tmp_path / "a.wav"]
    status, _, err = run("generate", *options, "--melody", tmp_path / "silence.wav", capsys=capsys)
    assert status == 2 and "silence.wav: is silent" in err and not (tmp_path / "a.wav").exists()
    status, _, err = run("generate", *options, "--melody", tmp_path / "hum.wav", capsys=capsys)
    assert status == 0, err
    status, out, _ = run("info", tmp_path / "bundle", capsys=capsys)
    assert status == 0 and re.search(r"^melody +3 a window, 2 levels of 17 codes$", out, re.MULTILINE)


def test_generate_checks_the_place_before_the_work(tiny_bundle, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("musiclm_jax.musiclm.MusicLM.generate", lambda *args, **kwargs: pytest.fail("generated before it checked"))
    (tmp_path / "song-2.wav").mkdir()
    options = ["--samples", "2", "--model", tiny_bundle, "--out", tmp_path / "song.wav"]
    status, _, err = run("generate", "piano", *options, capsys=capsys)
    assert status == 2 and "song-2.wav" in err and [path.name for path in tmp_path.iterdir()] == ["song-2.wav"]


def test_export_overwrites_nothing(tiny_bundle, tmp_path, capsys):
    out = tmp_path / "copy"
    assert run("export", tiny_bundle, out, "--dtype", "float16", capsys=capsys)[0] == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    status, _, err = run("export", tiny_bundle, out, capsys=capsys)
    assert status == 2 and "copy exists already, and is not overwritten: name a new folder" in err
    assert before == {path.name: path.read_bytes() for path in out.iterdir()}


def test_demo_is_the_packaged_model_and_a_folder_has_a_slash(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").mkdir()
    assert pretrained.open_pretrained("demo").path == pretrained.open_pretrained(Path("demo")).path != tmp_path / "demo"
    with pytest.raises(UserError, match=r"demo: not a bundle"):
        pretrained.open_pretrained("./demo")
    (tmp_path / "run" / "export" / "bundle").mkdir(parents=True)
    (tmp_path / "run" / "export" / "bundle" / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"run: the work folder of a fit, not a bundle; its bundle is run/export/bundle"):
        pretrained.open_pretrained("run")


def test_a_signal_ends_the_process_at_once(tmp_path):
    program = "import os, signal\nfrom musiclm_jax.cli import main\nmain._stop(signal.SIGINT, None)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr.strip()) == (130, "", "musiclm: stopped")


def test_interrupted_generation_leaves_nothing(tiny_bundle, tmp_path, capsys, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("musiclm_jax.musiclm.MusicLM.stream", interrupted)
    status, out, err = run("generate", "piano", "--model", tiny_bundle, "--out", tmp_path / "a.wav", capsys=capsys)
    assert (status, out, err.strip()) == (130, "", "") and list(tmp_path.iterdir()) == []


def test_out_of_memory_is_a_users_mistake(tiny_bundle, tmp_path, capsys, monkeypatch):
    import jax

    def too_large(*args, **kwargs):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")

    monkeypatch.setattr("musiclm_jax.musiclm.MusicLM.stream", too_large)
    status, _, err = run("generate", "piano", "--model", tiny_bundle, "--out", tmp_path / "a.wav", capsys=capsys)
    assert status == 2 and "memory" in err and err.count("\n") == 1


def test_damaged_model(tiny_bundle, tmp_path, capsys):
    import shutil

    shutil.copytree(tiny_bundle, tmp_path / "cut")
    blob = (tiny_bundle / "fine.safetensors").read_bytes()
    (tmp_path / "cut" / "fine.safetensors").write_bytes(blob[:-1])
    status, _, err = run("generate", "piano", "--model", tmp_path / "cut", "--out", tmp_path / "a.wav", capsys=capsys)
    assert status == 2 and "fine.safetensors" in err and err.count("\n") == 1 and not (tmp_path / "a.wav").exists()


def test_info_and_export(tiny_bundle, tmp_path, capsys):
    status, out, _ = run("info", tiny_bundle, capsys=capsys)
    assert status == 0 and "w2v_bert" in out and "24000 Hz" in out
    (tmp_path / "run" / "export").mkdir(parents=True)
    tiny_bundle_in_a_run = tmp_path / "run" / "export" / "bundle"
    tiny_bundle_in_a_run.symlink_to(tiny_bundle)
    status, _, err = run("export", tmp_path / "run", tmp_path / "half", "--dtype", "float16", capsys=capsys)
    assert status == 0, err
    sizes = [(folder / "coarse.safetensors").stat().st_size for folder in (tiny_bundle, tmp_path / "half")]
    assert sizes[1] < sizes[0]
    assert run("export", tmp_path / "run" / "export", tmp_path / "b", capsys=capsys)[0] == 2


def test_corpus(tmp_path, capsys):
    status, out, err = run("corpus", tmp_path / "clips", "--clips", "1", "--workers", "1", capsys=capsys)
    assert status == 0 and "1 clips" in out and (tmp_path / "clips" / "metadata.jsonl").exists(), err
    for arguments in (["--clips", "0"], ["--variants", "-1"], ["--seed", "-1"], ["--workers", "0"], ["--seed", "7"]):
        status, _, err = run("corpus", tmp_path / "clips", *arguments, capsys=capsys)
        assert status == 2 and err.count("\n") == 1


def test_faults_of_the_machine_are_one_line(tiny_bundle, tmp_path, capsys, monkeypatch):
    def raises(error):
        def generate(*args, **kwargs):
            raise error

        monkeypatch.setattr("musiclm_jax.musiclm.MusicLM.stream", generate)
        status, _, err = run("generate", "piano", "--model", tiny_bundle, "--out", tmp_path / "a.wav", capsys=capsys)
        assert status == 2 and err.count("\n") == 1
        return err

    assert "disk: No space left on device: free some space" in raises(OSError(errno.ENOSPC, "No space left on device", "disk"))
    monkeypatch.setenv("JAX_PLATFORMS", "abacus")
    assert "JAX_PLATFORMS='abacus': leave it unset" in raises(RuntimeError("Unable to initialize backend 'abacus'"))
    assert "the package librosa is missing" in raises(ModuleNotFoundError("No module named 'librosa'", name="librosa"))
    assert "not enough memory" in raises(MemoryError())


def test_evaluate_mistakes(tmp_path, capsys):
    for arguments, names in [
        (["adherence", tmp_path, "--seconds", "nan"], "nan"),
        (["adherence", tmp_path, "--seconds", "1"], "seconds"),
        (["codec", tmp_path, "--model", tmp_path / "none"], "none"),
        (["codec", tmp_path, "--model", "n" * 300], f"musiclm: {'n' * 300}: no such folder"),
        (["semantic", tmp_path, "--seconds", "0.5"], "seconds"),
        (["adherence", tmp_path, "--seed", "-1"], "seed"),
        (["mulan", tmp_path, "--seed", "-1"], "seed"),
        (["mulan", tmp_path, "--model", tmp_path / "none"], "none"),
        (["melody", tmp_path], "musiclm train melody"),
    ]:
        status, _, err = run("evaluate", *arguments, capsys=capsys)
        assert status == 2 and names in err and err.count("\n") == 1


# --------------------------------------------------------------------- parts


def test_numbered():
    assert clips.numbered(Path("a/b.wav"), 1) == [Path("a/b.wav")]
    assert clips.numbered(Path("a/b.wav"), 3) == [Path("a/b-1.wav"), Path("a/b-2.wav"), Path("a/b-3.wav")]


def test_per_stage_options_merge():
    convert = lambda text, number: options.PerStage(number).convert(text, None, None)  # noqa: E731
    temperatures = (convert("0.9", float), convert("fine=0.4", float))
    assert options.overrides(["semantic", "coarse", "fine"], temperature=temperatures, top_k=(convert("fine=64", int),)) == {
        "semantic": {"temperature": 0.9},
        "coarse": {"temperature": 0.9},
        "fine": {"temperature": 0.4, "top_k": 64},
    }


@pytest.mark.parametrize("arguments", [[], ["--help"], ["generate", "--help"], ["evaluate", "--help"], ["--version"]])
def test_help(arguments, capsys):
    status, out, err = run(*arguments, capsys=capsys)
    assert (status, err) == (0, "") and "musiclm" in out


def test_help_and_import_are_light():
    """No JAX before a command needs it. Processor time, since a busy machine has its own ideas of the other."""
    program = "import sys, time, musiclm_jax, musiclm_jax.cli.main; print('jax' in sys.modules or 'numpy' in sys.modules, time.process_time())"
    heavy, seconds = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout.split()
    assert heavy == "False" and float(seconds) < 1.0  # 0.1 s on the author's machine.


def test_cache_folder_that_cannot_be_written(tmp_path, monkeypatch):
    import jax

    (tmp_path / "file").write_text("")
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    before = jax.config.jax_compilation_cache_dir
    for place in (str(tmp_path / "file" / "cache"), ""):
        monkeypatch.setenv("MUSICLM_CACHE_DIR", place)
        options.use_compilation_cache()
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
