"""musicnn in JAX against what the original said of 20 clips (`tools/read_musicnn.py`), and its packaged weights."""

from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors
from scripts import load_script

from musiclm_jax.evaluation.embeddings import load_musicnn
from musiclm_jax.models import musicnn

RECORDED = np.load(Path(__file__).with_name("musicnn_original.npz"))


@pytest.fixture(scope="module")
def tool():
    return load_script("tools/read_musicnn.py")


def test_it_is_the_original(tool):
    judge = load_musicnn()
    waves = list(tool.clips())
    assert len(waves) == 20 and [len(musicnn.patches(wave)) for wave in waves] == RECORDED["counts"].tolist()
    assert tuple(RECORDED["names"]) == judge.labels
    # One call for all patches, so that one program is compiled.
    patches = np.concatenate([musicnn.patches(wave) for wave in waves])
    embeddings, logits = musicnn.apply(judge.config, judge.params, patches)
    assert RECORDED["features"].std() > 0.1 and RECORDED["tags"].max() > 0.5  # Otherwise the tolerance would mean nothing.
    np.testing.assert_allclose(embeddings, RECORDED["features"], atol=1e-4, rtol=0)
    np.testing.assert_allclose(jax.nn.sigmoid(logits), RECORDED["tags"], atol=1e-4, rtol=0)


def test_a_wave_is_judged_patch_by_patch(tool):
    wave = list(tool.clips())[-1]
    judge = load_musicnn()
    rows = judge.embed(wave)
    first = sum(RECORDED["counts"][:-1])
    np.testing.assert_allclose(rows, RECORDED["features"][first:], atol=1e-4, rtol=0)
    np.testing.assert_allclose(jax.nn.sigmoid(judge.logits(wave)), RECORDED["tags"][first:], atol=1e-4, rtol=0)


def test_patches_are_whole():
    wave = np.arange(musicnn.MIN_SAMPLES + musicnn.PATCH_HOP, dtype=np.float32)
    assert len(musicnn.patches(wave)) == 2 and len(musicnn.patches(wave[:-1])) == 1
    # The frames of a patch are centred on their hops: the first one begins half a window before the wave.
    assert musicnn.patches(wave)[0][256 + 5] == 5 and not musicnn.patches(wave)[0][:256].any()
    assert musicnn.patches(wave)[1][256 + 5] == musicnn.PATCH_HOP + 5
    with pytest.raises(ValueError, match="47615 samples, expected at least 47616"):
        musicnn.patches(wave[: musicnn.MIN_SAMPLES - 1])


def test_the_weights_have_their_notice(tool):
    with safetensors.safe_open(tool.WEIGHTS, framework="numpy") as file:
        assert "Copyright (c) Music Technology Group" in file.metadata()["notice"] and "musicnn 0.1.0" in file.metadata()["source"]
    assert "musicnn" in (tool.WEIGHTS.parent / "README.md").read_text(encoding="utf-8")
