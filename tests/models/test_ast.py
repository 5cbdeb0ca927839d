"""The Audio Spectrogram Transformer as MuLan's audio tower. Its values are proved in tests/parity."""

import dataclasses
import functools
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_params import random_params

from musiclm_jax.audio.features import LogMelConfig
from musiclm_jax.cli.gin_config import load_config
from musiclm_jax.configs import MusicLMConfig
from musiclm_jax.errors import UserError
from musiclm_jax.models import mulan
from musiclm_jax.models.ast import AST, ASTConfig
from musiclm_jax.models.mulan import MuLanConfig
from musiclm_jax.models.resnet import ResNetConfig
from musiclm_jax.tasks.mulan import MuLanTask
from musiclm_jax.training import sharding

MELS = 11
# Columns of patches begin at frames 0, 3, ..., 18; the last frame is in none.
TINY = ASTConfig(max_frames=23, patch_size=4, patch_stride=3, dim=10, num_layers=2, num_heads=2, mlp_dim=14)
BASE = MuLanConfig(mel=LogMelConfig(num_mels=128), audio=ASTConfig())


@functools.cache
def params():
    return random_params(AST(TINY).init, jax.random.key(0), mels())


def mels(frames=TINY.max_frames):
    return jnp.asarray(np.random.default_rng(1).normal(size=(2, frames, MELS)), jnp.float32)


def test_which_frames_and_bins_are_seen():
    grads = np.asarray(jax.jit(jax.grad(lambda x: AST(TINY).apply({"params": params()}, x)[0, 0]))(mels()))
    seen = np.abs(grads).max(axis=(0, 2)) > 0, np.abs(grads).max(axis=(0, 1)) > 0
    np.testing.assert_array_equal(seen[0], np.arange(23) < 22)
    np.testing.assert_array_equal(seen[1], np.arange(11) < 10)
    assert not grads[1].any()  # Another clip.


def test_a_shorter_clip_uses_the_first_positions():
    short = dataclasses.replace(TINY, max_frames=14)
    cut = {**params(), "positions": params()["positions"][:, :4]}
    np.testing.assert_allclose(AST(TINY).apply({"params": params()}, mels(14)), AST(short).apply({"params": cut}, mels(14)), atol=1e-6)


@pytest.mark.parametrize("frames", [3, 24])
def test_other_lengths_are_named(frames):
    with pytest.raises(ValueError, match=f"4 to max_frames=23 frames and at least 4 mel bins, got {frames} and 11"):
        AST(TINY).apply({"params": params()}, mels(frames))


@pytest.mark.parametrize("change", [dict(num_heads=3), dict(patch_stride=0), dict(patch_size=24)])
def test_nonsense_is_refused(change):
    with pytest.raises(UserError, match=next(iter(change))):
        dataclasses.replace(TINY, **change)


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def test_base_size():
    boxed = jax.eval_shape(lambda: mulan.init(BASE, jax.random.key(0)))
    shapes = nn.unbox(boxed)
    # The published model for 1,024 frames, 86,187,264 less its classifier; two columns of 12 positions fewer, and the tokens' two.
    assert count(shapes["audio_tower"]) == 86_187_264 - (2 * 12 + 2) * 768
    assert count(shapes["audio_head"]) == 768 * 128 + 128
    embedding = jax.eval_shape(lambda p, w: mulan.embed_audio(BASE, p, w), shapes, jax.ShapeDtypeStruct((1, 240_000), jnp.float32))
    assert embedding.shape == (1, 128)
    for box in jax.tree.leaves(boxed, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned)):
        assert isinstance(box, nn.LogicallyPartitioned) and len(box.names) == box.value.ndim, box


def test_base_size_shards_and_takes_a_step():
    task = MuLanTask(model=dataclasses.replace(BASE, remat="full"))
    boxed = jax.eval_shape(task.init_state, jax.random.key(0))
    state = sharding.unbox(boxed)
    where = sharding.state_shardings(boxed, jax.sharding.AbstractMesh((2, 2, 2), ("data", "fsdp", "tensor")))
    jax.tree.map(lambda leaf, where: where.shard_shape(leaf.shape), state, where)  # Raises where an axis does not divide.
    wave, ids = jax.ShapeDtypeStruct((2, BASE.window_samples), jnp.float32), jax.ShapeDtypeStruct((2, 5), jnp.int32)
    batch = {"wave": wave, "text_ids": ids, "text_mask": jax.ShapeDtypeStruct((2, 5), bool)}
    after, metrics = jax.eval_shape(task.train_step, state, batch, jax.random.key(0))
    assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, state) and metrics["loss"].shape == ()


def test_json_knows_the_towers_apart():
    for model in (BASE, MuLanConfig(), MuLanConfig(audio=ResNetConfig(depths=(1,), widths=(4,), strides=((2, 2),)))):
        config = MusicLMConfig(mulan=model)
        assert MusicLMConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_a_gin_file_chooses_it(tmp_path):
    file = tmp_path / "ast.gin"
    file.write_text(
        "from __gin__ import dynamic_registration\n"
        "from musiclm_jax.audio import features\n"
        "from musiclm_jax.models import ast\n"
        "from musiclm_jax.models import mulan\n"
        "mulan.MuLanConfig.mel = @features.LogMelConfig()\n"
        "features.LogMelConfig.num_mels = 128\n"
        "mulan.MuLanConfig.audio = @ast.ASTConfig()\n"
    )
    assert load_config("base", [str(file)], ["MuLanConfig.dtype=float32", "MuLanConfig.remat=none"]).model.mulan == BASE
