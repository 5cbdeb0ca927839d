"""What of the interoperation with T5X needs no T5X: names of axes, tiles of devices, conversion of weights, errors."""

import argparse
import contextlib
import dataclasses
import importlib.util

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_streams import STAGES, stage_layout
from tiny_musiclm import tiny_musiclm
from toy import HERE, with_tokens

from musiclm_jax.cli.gin_config import load_config
from musiclm_jax.errors import UserError
from musiclm_jax.interop.t5x import axes, checkpoints
from musiclm_jax.interop.t5x.__main__ import _connect, main
from musiclm_jax.interop.t5x.meshes import tile
from musiclm_jax.interop.t5x.stage import StageRun
from musiclm_jax.models import stage as stage_model
from musiclm_jax.models.stage import Stage, StageConfig
from musiclm_jax.musiclm import MusicLM

MODEL = StageConfig(dim=8, num_layers=2, num_heads=2, head_dim=4, mlp_dim=8, time_bias=True)
# The names for which `standard_logical_axis_rules` of T5X has rules.
T5X_NAMES = {"vocab", "embed", "mlp", "heads", "kv", "relpos_buckets", "layers", "stack"}


@pytest.mark.parametrize("name", STAGES)
def test_every_axis_has_a_name_that_t5x_has_a_rule_for(name):
    boxed = jax.eval_shape(lambda: stage_model.init(MODEL, stage_layout(name), jax.random.key(0)))
    shapes = jax.tree_util.tree_leaves_with_path(nn.meta.unbox(boxed))
    named = axes.params_axes(boxed)
    known = T5X_NAMES | {axis for axis, _ in axes.logical_axis_rules()}
    for path, leaf in shapes:
        *above, last = (key.key for key in path)
        tree = named
        for key in above:
            tree = tree[key]
        names = tree[f"{last}_axes"].names
        assert len(names) == len(set(names)) == leaf.ndim and set(names) <= known, path
    assert len(jax.tree.leaves(named, is_leaf=lambda leaf: hasattr(leaf, "names"))) == len(shapes)
    assert named["embed"]["embedding_axes"].names == ("ids", "embed") and named["head_axes"].names == ("vocab", "embed")
    assert named["body"]["layers"]["attention"]["qkv_kernel_axes"].names == ("layers", "embed", "stack", "heads", "kv")


def test_an_axis_that_nobody_named_is_an_error():
    with pytest.raises(ValueError, match="name all of them"):
        axes.params_axes({"new": nn.LogicallyPartitioned(np.zeros((2, 3)), ("embed", None))})
    with pytest.raises(ValueError, match="has no axis names"):
        axes.params_axes({"new": np.zeros(2)})


@pytest.mark.parametrize(
    ("model", "everywhere", "here", "expected"),
    [
        (1, (4, 4, 1, 1), (2, 2, 1, 1), (1, 1, 1, 1)),
        (4, (4, 4, 1, 1), (2, 2, 1, 1), (2, 2, 1, 1)),  # v5e-16: a host.
        (8, (4, 4, 1, 1), (2, 2, 1, 1), (2, 4, 1, 1)),
        (8, (2, 2, 4, 1), (2, 2, 1, 1), (2, 2, 2, 1)),  # v5p-32: two hosts above each other.
        (2, (4, 4, 1, 2), (2, 2, 1, 2), (1, 1, 1, 2)),
        (2, (2, 4), (1, 4), (1, 2)),  # Two hosts of four.
        (8, (2, 4), (1, 4), (2, 4)),
    ],
)
def test_tiles_stay_within_a_host_as_long_as_they_can(model, everywhere, here, expected):
    assert tile(model, everywhere, here) == expected


def test_a_tile_that_devices_do_not_have():
    with pytest.raises(UserError, match="MODEL_PARALLEL=3 does not tile"):
        tile(3, (2, 4), (1, 4))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundle") / "bundle"
    tiny_musiclm().save_pretrained(folder)
    return folder


def test_a_stage_goes_to_t5x_and_back_with_the_same_logits(bundle, tmp_path, capsys):
    main(["from_bundle", str(bundle), "--stage", "coarse", "--model_dir", str(tmp_path)])
    checkpoint = capsys.readouterr().out.splitlines()[-1]
    assert checkpoint == str(tmp_path / "checkpoint_0")
    before = MusicLM.from_pretrained(bundle)
    checkpoints.write_params(jax.tree.map(lambda leaf: 2 * leaf, before.variables("coarse")["params"]), tmp_path, step=3)
    main(["to_bundle", str(tmp_path / "checkpoint_3"), "--model", str(bundle), "--stage", "coarse", "--out", str(tmp_path / "twice")])
    main(["to_bundle", checkpoint, "--model", str(tmp_path / "twice"), "--stage", "coarse", "--out", str(tmp_path / "back")])
    twice, back = (MusicLM.from_pretrained(tmp_path / name) for name in ("twice", "back"))
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(2 * a, b), before.variables("coarse"), twice.variables("coarse"))
    spec, layout = before.config.stage("coarse"), before.config.stage("coarse").layout(before.config.streams)
    ids, codes = jnp.arange(7)[None] % layout.prefix[0].codes, jnp.ones((1, 5, layout.target.levels), jnp.int32)
    logits = lambda model: Stage(spec.model, layout).apply(model.variables("coarse"), ids, codes)  # noqa: E731
    np.testing.assert_allclose(logits(before), logits(back), atol=1e-5)
    assert np.abs(logits(before) - logits(twice)).max() > 1e-3
    np.testing.assert_array_equal(before.variables("semantic")["params"]["head"], back.variables("semantic")["params"]["head"])


def test_weights_of_another_stage_are_refused(bundle, tmp_path):
    checkpoint = checkpoints.from_bundle(bundle, stage="fine", model_dir=tmp_path)
    with pytest.raises(UserError, match="checkpoint_0: .*the config requires"):
        checkpoints.to_bundle(checkpoint, model=bundle, stage="semantic", out=tmp_path / "out")
    with pytest.raises(UserError, match="is no checkpoint of T5X"):
        checkpoints.to_bundle(tmp_path, model=bundle, stage="semantic", out=tmp_path / "out")
    with pytest.raises(UserError, match="checkpoint_0 exists"):
        checkpoints.from_bundle(bundle, stage="fine", model_dir=tmp_path)
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(importlib.util.find_spec("seqio") is not None, reason="T5X is installed")
def test_programs_need_t5x():
    with pytest.raises(UserError, match="T5X is not installed: pip install"):
        main(["train", "--gin_file=models/base.gin"])


@pytest.mark.parametrize(("given", "error"), [({}, None), ({"process_count": 2}, "need --coordinator_address=HOST:PORT")])
def test_one_process_needs_no_address(monkeypatch, given, error):
    def finds_no_cluster(coordinator_address, num_processes, process_id):
        assert coordinator_address is None and num_processes == given.get("process_count") and process_id is None
        raise ValueError("coordinator_address should be defined.")  # What JAX raises then.

    monkeypatch.setattr(jax.distributed, "initialize", finds_no_cluster)
    options = argparse.Namespace(**{"coordinator_address": None, "process_count": None, "process_index": None, **given})
    with pytest.raises(UserError, match=error) if error else contextlib.nullcontext():
        _connect(options)


def test_a_work_folder_without_the_tokens_is_one_line(tmp_path):
    stage = StageRun(with_tokens(load_config("test", [HERE / "toy.gin"])), "semantic")
    with pytest.raises(UserError, match="give --gin.DATA and --gin.WORKDIR"):
        stage.run  # noqa: B018
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.wav").write_bytes(b"RIFF")
    with pytest.raises(UserError, match="semantic needs prepare: new .* run `musiclm train prepare` with the same gin values first"):
        dataclasses.replace(stage, data=str(tmp_path / "data"), workdir=str(tmp_path / "work")).run  # noqa: B018
    with pytest.raises(UserError, match="'tokens' is no stage: choose one of semantic, coarse, fine"):
        dataclasses.replace(stage, stage="tokens").part  # noqa: B018
