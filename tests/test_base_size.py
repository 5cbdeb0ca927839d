"""The paper's sizes, as shapes only: every part initializes, shards over eight devices, takes a step in bfloat16 that keeps its state's shape, and has the
parameters that docs/sizes.md says."""

import functools
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.extend.core import jaxprs_in_params

from musiclm_jax.audio.features import LogMelConfig
from musiclm_jax.cli.gin_config import load_config
from musiclm_jax.generation.stages import musiclm_stages
from musiclm_jax.models import mulan
from musiclm_jax.models.ast import ASTConfig
from musiclm_jax.models.discriminators import DiscriminatorConfig, Discriminators
from musiclm_jax.models.mulan import MuLanConfig
from musiclm_jax.models.soundstream import SoundStream, SoundStreamConfig
from musiclm_jax.parts.stage import StagePart
from musiclm_jax.parts.trained import TrainedPart
from musiclm_jax.training import sharding
from musiclm_jax.training.cost import count_flops

TRAINED = [part.name for part in load_config("base").parts if isinstance(part, TrainedPart)]


@pytest.mark.parametrize("name", TRAINED)
def test_shapes_shardings_and_one_step(name):
    config = load_config("base")
    part = config.part(name)
    task = part.task(config)
    boxed = jax.eval_shape(task.init_state, jax.random.key(0))
    state = sharding.unbox(boxed)
    mesh = jax.sharding.AbstractMesh((2, 2, 2), ("data", "fsdp", "tensor"))
    shardings = sharding.state_shardings(boxed, mesh)
    jax.tree.map(lambda leaf, where: where.shard_shape(leaf.shape), state, shardings)  # Raises where an axis does not divide.
    program, (after, metrics) = jax.make_jaxpr(task.train_step, return_shape=True)(state, part.batch_shapes(config), jax.random.key(0))
    same = lambda a, b: a.shape == b.shape and a.dtype == b.dtype  # noqa: E731
    assert jax.tree.all(jax.tree.map(same, state, after)) and metrics["loss"].shape == ()
    assert {leaf.dtype for leaf in jax.tree.leaves((state.params, state.opt_state, state.stats))} <= {jnp.dtype(kind) for kind in ("float32", "int32", "bool")}
    work = list(products(program.jaxpr))
    assert sum(flops for flops, kinds in work if jnp.dtype("bfloat16") in kinds) > 0.97 * sum(flops for flops, _ in work)
    if name in ("semantic", "coarse", "fine", "w2v_bert", "melody"):
        size = lambda shape: sum(x.size for x in jax.tree.leaves(shape))  # noqa: E731
        sharded = sum(math.prod(w.shard_shape(x.shape)) for x, w in zip(jax.tree.leaves(state.params), jax.tree.leaves(shardings.params)))
        assert sharded < 0.3 * size(state.params)  # A quarter, and what is too small to split.


def products(jaxpr, times=1):
    """(FLOPs, dtypes of the operands) of matrix products and convolutions."""
    for eqn in jaxpr.eqns:
        if eqn.primitive.name in ("dot_general", "conv_general_dilated"):
            yield times * count_flops(jaxpr.replace(eqns=[eqn])), {operand.aval.dtype for operand in eqn.invars}
        for inner in jaxprs_in_params(eqn.params):
            yield from products(inner, times * eqn.params.get("length", 1))


def task(name):
    config = load_config("base")
    return lambda key: config.part(name).task(config).init_state(key).params


def fine_with_mulan(key):
    config = load_config("base")
    fine = StagePart(stage="fine", spec=musiclm_stages(fine_sees_mulan=True)[2])
    return fine.task(config).init_state(key).params


def discriminators(key):
    return Discriminators(DiscriminatorConfig()).init(key, jnp.zeros((1, 4800)))


def soundstream(**widths):
    config = SoundStreamConfig(**widths)
    return lambda key: SoundStream(config).init(key, jnp.zeros((1, config.frame_samples)))


AST_MULAN = MuLanConfig(mel=LogMelConfig(num_mels=128), audio=ASTConfig())
# The rows of docs/sizes.md -> what makes their parameters.
ROWS = {
    "semantic stage": task("semantic"),
    "coarse stage": task("coarse"),
    "fine stage": task("fine"),
    "fine stage, with MuLan tokens": fine_with_mulan,
    "SoundStream, MusicLM's": soundstream(),
    "its discriminators": discriminators,
    "w2v-BERT XL": task("w2v_bert"),
    "MuLan, ResNet-50 tower": functools.partial(mulan.init, MuLanConfig()),
    "MuLan, AST tower": functools.partial(mulan.init, AST_MULAN),
    "melody embedder": task("melody"),
}
DOCS = (Path(__file__).parent.parent / "docs" / "sizes.md").read_text(encoding="utf-8")


def count(make):
    return sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(make, jax.random.key(0))))


def row(name):
    return next(cells for line in DOCS.splitlines() if (cells := [cell.strip() for cell in line.strip("|").split("|")])[0] == name)


@pytest.mark.parametrize("name", ROWS)
def test_counts_are_those_of_the_docs(name):
    assert f"{count(ROWS[name]) / 1e6:.1f}M" == row(name)[3]


def test_soundstreams_table_1_is_that_of_the_docs():
    for widths, ours in zip(row("encoder, decoder width")[1:], row("ours")[1:], strict=True):
        encoder, decoder = map(int, widths.split(","))
        make = soundstream(channels=encoder, decoder_channels=decoder, strides=(2, 4, 5, 8))
        assert f"{count(make) / 1e6:.2f}M" == ours
