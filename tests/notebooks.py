"""Runs the notebooks of colab/ with other parameters, as papermill does, and reads what they show."""

import base64
import io
import os
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile

import musiclm_jax

FOLDER = Path(__file__).parent.parent / "colab"


class Outputs:
    """What the cells of a notebook that has run show, by the ids of the cells."""

    def __init__(self, notebook):
        self._cells = {cell.id: cell.outputs for cell in notebook.cells if cell.cell_type == "code"}

    def _data(self, cell, kind):
        return [output.data[kind] for output in self._cells[cell] if kind in output.get("data", {})]

    def text(self, cell):
        return "".join(output.text for output in self._cells[cell] if output.output_type == "stream" and output.name == "stdout")

    def figures(self, cell):
        """Sizes in bytes of the pictures."""
        return [len(base64.b64decode(data)) for data in self._data(cell, "image/png")]

    def waves(self, cell):
        """What the players play."""
        found = [re.search(r'src="data:audio/wav;base64,([^"]+)"', html)[1] for html in self._data(cell, "text/html")]
        return [soundfile.read(io.BytesIO(base64.b64decode(data)), dtype="int16") for data in found]

    def seconds(self, cell):
        """Lengths of what the players play, none of which is silent, each below its spectrogram."""
        waves = self.waves(cell)
        assert len(self.figures(cell)) == len(waves) and min(self.figures(cell)) > 2000
        assert all(rate == 24_000 and np.abs(wave).max() > 100 for wave, rate in waves)
        return [round(len(wave) / rate, 3) for wave, rate in waves]


def read(name):
    nbformat = pytest.importorskip("nbformat", reason="the extra test of this version is not installed")
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=nbformat.NO_CONVERT)


def source(name, cell):
    return next(each.source for each in read(name).cells if each.id == cell)


def parameters(name):
    """The names that the cell tagged `parameters` sets."""
    return re.findall(r"^([A-Z_]+) = ", source(name, "parameters"), re.MULTILINE)


def execute(name, folder, monkeypatch, **values):
    """Runs a notebook in a folder, with values for some of its parameters."""
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    pytest.importorskip("matplotlib")
    notebook = read(name)
    assert set(values) <= set(parameters(name))
    at = next(i for i, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", ()))
    given = "\n".join(f"{key} = {value!r}" for key, value in values.items())
    notebook.cells.insert(at + 1, nbformat.v4.new_code_cell(given, id="given"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(musiclm_jax.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]))
    nbclient.NotebookClient(notebook, timeout=1200, kernel_name="python3", resources={"metadata": {"path": str(folder)}}).execute()
    return Outputs(notebook)
