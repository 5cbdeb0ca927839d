"""Decoding that is stopped in any way and continued: the same bytes as if it had not been."""

import json
import os
import subprocess
import sys
import textwrap
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import soundfile

import musiclm_jax
from musiclm_jax.audio import files
from musiclm_jax.data import decoding
from musiclm_jax.data.clips import prepare
from musiclm_jax.data.decoding import decode_clips
from musiclm_jax.data.folder import read_folder
from musiclm_jax.errors import UserError

RATE = 4000


def make_clips(folder, count=12, *, seconds=1.0):
    """Tones and, at 03.wav, silence."""
    folder.mkdir()
    for i in range(count):
        wave = 0.3 * np.sin(np.arange(round((seconds + i / 8) * 2 * RATE)) * (0.02 + 0.01 * i)) if i != 3 else np.zeros(3 * RATE)
        soundfile.write(folder / f"{i:02d}.wav", np.stack([wave, wave], axis=1), 2 * RATE)
    return folder


def contents(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.fixture
def decoded(monkeypatch):
    """The names of files that are decoded."""
    log, original = [], decoding._decode_file
    monkeypatch.setattr(decoding, "_decode_file", lambda path, *arguments, **options: log.append(path.name) or original(path, *arguments, **options))
    return log


# ---------------------------------------------------------------------------------------------------------------------- Killed


PROGRAM = """
    import os, resource, signal, sys
    from pathlib import Path
    from musiclm_jax.data import clips, decoding
    from musiclm_jax.data.folder import read_folder
    from musiclm_jax.errors import UserError

    data, work = Path(sys.argv[1]), Path(sys.argv[2])
    decoding._CHUNK_CLIPS = 2
    folder = read_folder(data)

    def in_a_process(run):
        pid = os.fork()
        if not pid:
            run()
            os._exit(0)
        return os.waitpid(pid, 0)[1]

    def prepare(directory, log=None):
        original = decoding._decode_file
        def decode(path, *arguments, **options):
            if log:
                with log.open("a") as file:
                    file.write(path.name + "\\n")
            return original(path, *arguments, **options)
        decoding._decode_file = decode
        clips.prepare(folder, directory, sample_rate_hz=4000, workers=1)

    def killed_at(number, directory, done):
        \"\"\"`prepare` in a process that is killed at its so manieth write, synchronization, renaming or removal, half of a write done.\"\"\"
        count = 0
        def event(act, half=lambda *arguments: None):
            def wrapped(*arguments, **options):
                nonlocal count
                count += 1
                if count == number:
                    half(*arguments)
                    os.kill(os.getpid(), signal.SIGKILL)
                return act(*arguments, **options)
            return wrapped
        def run():
            decoding._write_all = event(decoding._write_all, lambda file, data: file.write(data[: len(data) // 2]))
            os.fsync, os.replace, Path.replace, Path.unlink = map(event, (os.fsync, os.replace, Path.replace, Path.unlink))
            prepare(directory)
            done.touch()
        return in_a_process(run)
"""
KILLS = """
    number = 0
    while True:
        number += 1
        directory, done, log = work / f"{number}", work / f"{number}.done", work / f"{number}.log"
        status = killed_at(number, directory, done)
        if done.exists():
            break
        assert os.WTERMSIG(status) == signal.SIGKILL
        journal = directory / "samples.journal"
        known = journal.read_text().count("\\n") - 1 if journal.exists() else 12 if (directory / "clips.json").exists() else 0
        assert in_a_process(lambda: prepare(directory, log)) == 0
        names = log.read_text().split() if log.exists() else []
        # What the journal knows is not decoded again; where it was there already when the folder was new, that is all.
        assert len(names) == 12 - max(known, 0), (number, known, names)
    # Killed again and again, each time a little later.
    number = 3
    while True:
        done = work / f"again.{number}.done"
        killed_at(number, work / "again", done)
        if done.exists():
            break
        number += 1
    print(number)
"""
FULL = """
    def small():
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, resource.RLIM_INFINITY))
        try:
            prepare(work / "full")
        except UserError as error:
            (work / "error").write_text(str(error))
            os._exit(3)
    assert os.WEXITSTATUS(in_a_process(small)) == 3
    assert in_a_process(lambda: prepare(work / "full", work / "log")) == 0
"""


def run_program(tmp_path, program):
    make_clips(tmp_path / "in")
    (tmp_path / "work").mkdir()
    command = [sys.executable, "-c", textwrap.dedent(PROGRAM) + textwrap.dedent(program), str(tmp_path / "in"), str(tmp_path / "work")]
    environment = {**os.environ, "PYTHONPATH": str(Path(musiclm_jax.__file__).parents[1])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    prepare(read_folder(tmp_path / "in"), tmp_path / "whole", sample_rate_hz=RATE)
    return contents(tmp_path / "whole")


def test_killed_at_any_moment_it_continues_to_the_same_bytes(tmp_path):
    whole = run_program(tmp_path, KILLS)
    assert sorted(whole) == ["clips.json", "index.json", "samples.npy", "skipped.log"]
    stores = [path for path in (tmp_path / "work").iterdir() if path.is_dir()]
    assert len(stores) > 30
    for store in stores:
        assert contents(store) == whole, store


def test_on_a_full_disk_what_is_done_stays(tmp_path):
    whole = run_program(tmp_path, FULL)
    assert (
        (tmp_path / "work" / "error")
        .read_text()
        .endswith("full cannot be written (File too large): free some space and run the same command again; it continues")
    )
    names = (tmp_path / "work" / "log").read_text().split()
    assert 0 < len(names) < 11 and names == [f"{i:02d}.wav" for i in range(12 - len(names), 12)]
    assert contents(tmp_path / "work" / "full") == whole


# ---------------------------------------------------------------------------------------------------------------------- Stopped and changed


class Stop(Exception):
    pass


def decode(folder, directory, *, rate=RATE, stop_at=None, **options):
    """decode_clips of a folder, stopped after so many clips."""

    def on_clip(done):
        if done == stop_at:
            raise Stop

    directory.mkdir(exist_ok=True)
    decode_clips(folder, read_folder(folder).entries, directory, sample_rate_hz=rate, on_clip=on_clip, **options)


def test_the_bytes_do_not_depend_on_workers_or_stops(tmp_path):
    folder = make_clips(tmp_path / "in")
    for workers in (1, 3):
        for stop_at in (None, 1, 4, 12):
            directory = tmp_path / f"{workers}-{stop_at}"
            if stop_at:
                with pytest.raises(Stop):
                    decode(folder, directory, stop_at=stop_at, workers=workers)
            decode(folder, directory, workers=workers)
            assert contents(directory) == contents(tmp_path / "1-None")
    record = json.loads((tmp_path / "1-None" / "clips.json").read_text())
    samples = np.load(tmp_path / "1-None" / "samples.npy")
    assert record["num_samples"] == len(samples) == sum(clip["length"] for clip in record["clips"]) and samples.dtype == np.int16
    for clip in record["clips"]:
        if clip["reason"] is None:
            wave = files.read(folder / clip["file_name"], sample_rate_hz=RATE)
            np.testing.assert_array_equal(samples[clip["offset"] :][: clip["length"]], np.rint(wave * 32768).astype(np.int16))
    assert [(clip["file_name"], clip["reason"]) for clip in record["clips"] if clip["reason"]] == [("03.wav", "is silent; remove it or export it again")]


def test_what_is_still_true_is_kept(tmp_path, decoded):
    folder, directory = make_clips(tmp_path / "in"), tmp_path / "store"

    def again(**options):
        decoded.clear()
        decode(folder, directory, workers=1, **options)
        return [int(name[:2]) for name in sorted(decoded)]

    def stopped(**options):
        with pytest.raises(Stop):
            again(**options)
        for name in ("samples.npy.partial", "samples.journal"):
            (tmp_path / name).write_bytes((directory / name).read_bytes())

    def restore():
        for name in ("samples.npy.partial", "samples.journal"):
            (directory / name).write_bytes((tmp_path / name).read_bytes())

    stopped(stop_at=8)
    assert again() == [8, 9, 10, 11]
    restore()
    (directory / "samples.journal").write_bytes((tmp_path / "samples.journal").read_bytes()[:-5])  # Its last line is torn.
    assert again() == [7, 8, 9, 10, 11]
    restore()
    (directory / "samples.npy.partial").write_bytes((tmp_path / "samples.npy.partial").read_bytes()[:-5])
    assert again() == [7, 8, 9, 10, 11]
    restore()
    assert again(rate=2 * RATE) == list(range(12))
    restore()
    (directory / "samples.journal").unlink()
    assert again() == list(range(12))
    # A clip of no use that is removed costs nothing, one that is new or another is decoded, and what follows it.
    restore()
    (folder / "03.wav").unlink()
    assert again() == [8, 9, 10, 11]
    restore()
    make_clips(tmp_path / "other", count=6, seconds=2)
    (folder / "05.wav").write_bytes((tmp_path / "other" / "05.wav").read_bytes())
    assert again() == [5, 6, 7, 8, 9, 10, 11]
    whole = contents(directory)
    decode(folder, tmp_path / "new")
    assert contents(tmp_path / "new") == whole


def test_memory_does_not_grow_with_the_length_of_a_clip(tmp_path, monkeypatch):
    """Where it is scaled, too: this one exceeds full scale."""
    (tmp_path / "in").mkdir()
    wave = 2 * np.sin(np.arange(600 * 8000) * 0.02).astype(np.float32)
    soundfile.write(tmp_path / "in" / "a.wav", np.stack([wave, wave], axis=1), 8000, subtype="FLOAT")
    monkeypatch.setattr(files, "_BLOCK_VALUES", 2**14)
    monkeypatch.setattr(decoding, "_COPY_SAMPLES", 2**14)
    monkeypatch.setattr(decoding, "_SPOOL_BYTES", 2**16)
    entries = read_folder(tmp_path / "in").entries
    (tmp_path / "store").mkdir()
    tracemalloc.start()
    try:
        decode_clips(tmp_path / "in", entries, tmp_path / "store", sample_rate_hz=RATE)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    samples = np.load(tmp_path / "store" / "samples.npy", mmap_mode="r")
    assert len(samples) == 600 * RATE and np.abs(samples[1000:-1000]).max() > 32_000 and peak < 1.5e6 < samples.nbytes


def test_errors_of_the_disk_are_one_line(tmp_path):
    folder = read_folder(make_clips(tmp_path / "in", count=3))
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"store cannot be written \(Not a directory\)"):
        prepare(folder, tmp_path / "file" / "store", sample_rate_hz=RATE)
