"""The notebooks of colab/: they run, show music and pictures, and are committed without outputs. train_your_own runs in tests/parts/test_fit.py."""

import fnmatch
import glob
import importlib.util
import json
import os
import subprocess
import sys

import notebooks
import numpy as np
import pytest
import soundfile
from tiny_musiclm import CAPTIONS, tiny_musiclm, with_melody

from musiclm_jax.cli.gin_config import load_config

NAMES = sorted(path.stem for path in notebooks.FOLDER.glob("*.ipynb"))
# The figure of this cell may be committed.
ALLOWED, MOST_BYTES = ("generate", "first"), 100_000


@pytest.fixture(scope="module")
def melodic(tmp_path_factory):
    """A bundle that follows melodies."""
    folder = tmp_path_factory.mktemp("models") / "melodic"
    tiny_musiclm(with_melody("semantic")).save_pretrained(folder)
    return str(folder)


def test_there_are_three():
    assert NAMES == ["generate", "steer", "train_your_own"]


@pytest.mark.parametrize("name", NAMES)
def test_notebooks_are_valid_and_of_one_form(name):
    notebook, path = notebooks.read(name), notebooks.FOLDER / f"{name}.ipynb"
    pytest.importorskip("nbformat").validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    text = path.read_text(encoding="utf-8")
    assert text == json.dumps(json.loads(text), indent=1, ensure_ascii=False, sort_keys=True) + "\n"
    ids = [cell.id for cell in notebook.cells]
    assert len(set(ids)) == len(ids) and ids[:3] == ["about", "parameters", "install"]
    assert [cell.id for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ())] == ["parameters"]


@pytest.mark.parametrize("name", NAMES)
def test_no_outputs_are_committed_but_one_figure(name):
    for cell in notebooks.read(name).cells:
        if cell.cell_type != "code":
            continue
        assert cell.execution_count is None
        if (name, cell.id) == ALLOWED:
            assert all(output.output_type == "display_data" and set(output.data) <= {"image/png", "text/plain"} for output in cell.outputs)
            assert len(cell.outputs) <= 1 and len(json.dumps(cell.outputs)) < MOST_BYTES
        else:
            assert cell.outputs == [], cell.id


# ---------------------------------------------------------------------------------------------------------------------- Installation


@pytest.fixture
def install(monkeypatch):
    """Runs the installation of a notebook on a machine with these devices, and returns what it gives to pip. there: whether the package is."""

    def run(name, devices, *, there=False, address="https://example.org/own/repository", checkout=False):
        calls = []
        monkeypatch.setattr(glob, "glob", lambda pattern: fnmatch.filter(devices, pattern))
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: there or None)
        monkeypatch.setattr(os.path, "isdir", lambda path: checkout)
        monkeypatch.setattr(os.path, "abspath", lambda path: "/checkout")
        monkeypatch.setattr(subprocess, "run", lambda command, check: calls.append((command, check)))
        exec(notebooks.source(name, "install"), {"REPOSITORY": address})
        monkeypatch.undo()
        return calls

    return run


@pytest.mark.parametrize("name", NAMES)
def test_what_the_machine_has_is_installed(name, install):
    own = "notebook,train" if name == "train_your_own" else "notebook"
    for devices, extra in [((), ""), (("/dev/nvidia0",), ",cuda"), (("/dev/accel0",), ",tpu"), (("/dev/vfio/0",), ",tpu"), (("/dev/nvidiactl",), "")]:
        ((command, check),) = install(name, devices)
        assert command == [sys.executable, "-m", "pip", "install", "--quiet", f"musiclm-jax[{own}{extra}] @ git+https://example.org/own/repository"] and check
    assert install(name, ("/dev/nvidia0",), there=True) == []
    ((command, _),) = install(name, (), address="", checkout=True)
    assert command[-1] == f"/checkout[{own}]"
    with pytest.raises(RuntimeError, match="into REPOSITORY above"):
        install(name, (), address="")


def test_the_installation_is_one(install):
    plain = {notebooks.source(name, "install").replace('["notebook", "train"]', '["notebook"]') for name in NAMES}
    assert len(plain) == 1


# ---------------------------------------------------------------------------------------------------------------------- Runs


def test_generate(tmp_path, monkeypatch):
    tiny_musiclm().save_pretrained(tmp_path / "tiny")
    shown = notebooks.execute("generate", tmp_path, monkeypatch, PROMPT=f"{CAPTIONS[0]} zither", SECONDS=0.3, SAMPLES=2, SEED=3, MODEL="tiny")
    assert "calm" in shown.text("load") and shown.text("load").endswith("it does not know: zither\n")
    assert [shown.seconds(cell) for cell in ("first", "samples", "seeds", "tries")] == [[0.3], [0.3, 0.3], [0.3], [0.3]]
    assert shown.text("seeds") == "the same seed gives the same clip: True\n"
    (first, _), (other, _) = shown.waves("first")[0], shown.waves("seeds")[0]
    assert (first != other).any()
    kept, _ = soundfile.read(tmp_path / "music.wav", dtype="int16")
    np.testing.assert_allclose(kept, first, atol=1)


def test_steer(tmp_path, melodic, monkeypatch):
    soundfile.write(tmp_path / "hum.wav", 0.3 * np.sin(np.arange(12_000) * 0.05), 12_000)
    story = [(0, CAPTIONS[0]), (0.4, CAPTIONS[1])]
    values = {"STORY": story, "SECONDS": 5, "SEED": 1, "RECORDING": "hum.wav", "HEARD_SECONDS": 0.5, "MELODY": "hum.wav", "MODEL": melodic}
    shown = notebooks.execute("steer", tmp_path, monkeypatch, **values)
    assert {cell: shown.seconds(cell) for cell in ("story", "continuation", "like", "mixture", "exact", "anew", "live", "melody")} == {
        "story": [5],
        "continuation": [3, 3],
        "like": [2.5],
        "mixture": [2.5, 2.5],
        "exact": [2.5],
        "anew": [0.5],
        "live": [5],
        "melody": [5],
    }
    hum, _ = soundfile.read(tmp_path / "hum.wav", dtype="float32")
    for wave, _ in shown.waves("continuation"):  # Both begin with it, at twice the rate.
        assert np.corrcoef(wave[:10_000:2], hum[:5000])[0, 1] > 0.99
    assert "estimated: " in shown.text("exact") and "missed: " in shown.text("exact")
    assert shown.text("live").splitlines()[0].endswith(f"the prompt is {CAPTIONS[0]!r}")
    assert shown.text("live").splitlines()[-1].endswith(f"the prompt is {CAPTIONS[1]!r}")


def test_the_settings_of_the_trial_are_read():
    values = {}
    exec(notebooks.source("train_your_own", "parameters"), values)
    config = load_config(values["SIZE"], bindings=values["SETTINGS"])
    assert [step.num_steps for step in config.steps_to("export") if step.num_steps is not None] == 8 * [100]


def test_a_model_that_follows_no_melody_is_said(capsys):
    exec(notebooks.source("steer", "melody"), {"musiclm": tiny_musiclm(), "MODEL": "demo", "MELODY": "hum.wav"})
    assert capsys.readouterr().out == "the model 'demo' follows no melody; train one as above, and name its folder in MODEL\n"
