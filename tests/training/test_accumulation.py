"""Micro-batches: the gradient of the whole batch, a key for each, negatives of the whole batch, and no resharding."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small_streams import make_streams, stage_layout
from test_sharding import run_program

from musiclm_jax.audio.features import LogMelConfig
from musiclm_jax.errors import UserError
from musiclm_jax.models.melody import MelodyConfig
from musiclm_jax.models.mulan import MuLanConfig, SpecAugmentConfig
from musiclm_jax.models.resnet import ResNetConfig
from musiclm_jax.models.stage import StageConfig
from musiclm_jax.models.text_tower import TextTowerConfig
from musiclm_jax.tasks.melody import MelodyRecipe, MelodyTask
from musiclm_jax.tasks.mulan import MuLanRecipe, MuLanTask
from musiclm_jax.tasks.soundstream import SoundStreamRecipe
from musiclm_jax.tasks.spectral_codec import SpectralCodecRecipe
from musiclm_jax.tasks.stage import StageRecipe, StageTask
from musiclm_jax.tasks.w2v_bert import W2vBertRecipe
from musiclm_jax.training import sharding
from musiclm_jax.training.accumulation import embed_in_parts, mean_over
from musiclm_jax.training.optim import OptimizerConfig
from musiclm_jax.training.task import Recipe

ROWS, KEY = 6, jax.random.key(7, impl="rbg")  # threefry takes long to compile on a CPU
MEL = LogMelConfig(sample_rate_hz=100, window_samples=40, hop_samples=20, num_fft=64, num_mels=11, max_hz=50.0)
PLAIN = OptimizerConfig(learning_rate=1e-2, schedule="constant", warmup_steps=1, clip_norm=0.0)


def quick(function):
    """Jitted; unoptimized code compiles faster."""
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})


def floats(metrics):
    return {name: float(value) for name, value in metrics.items()}


def in_parts(task, count):
    return dataclasses.replace(task, recipe=dataclasses.replace(task.recipe, accumulate=count))


def stage_task(**model):
    layout = stage_layout("semantic", make_streams(mulan=(3, 5), semantic=11, acoustic=(2, 7)))
    sizes = {"dim": 10, "num_layers": 2, "num_heads": 2, "head_dim": 4, "mlp_dim": 14, "dropout": 0.0} | model
    return StageTask("semantic", StageConfig(**sizes), layout, StageRecipe(optimizer=PLAIN))


def mulan_task():
    audio = ResNetConfig(depths=(1,), widths=(4,), strides=((1, 1),), bottleneck=False, stem_width=4, stem_pool=False)
    text = TextTowerConfig(vocab_size=19, max_tokens=13, dim=10, num_layers=1, num_heads=2, mlp_dim=14, dropout=0.0, pre_norm=True)
    model = MuLanConfig(mel=MEL, audio=audio, text=text, spec_augment=SpecAugmentConfig(0, 1, 0, 1), embedding_dim=7, loss="sigmoid")
    return MuLanTask(model, MuLanRecipe(optimizer=PLAIN, word_weight=0.3))


def melody_task():
    model = MelodyConfig(mel=MEL, dim=10, num_layers=1, num_heads=3, head_dim=2, mlp_dim=14, dropout=0.0, embedding_dim=7, window_sec=2.6)
    return MelodyTask(model, MelodyRecipe(optimizer=PLAIN))


def batch_of(task):
    rng = np.random.default_rng(0)
    ids = lambda most, *shape: jnp.asarray(rng.integers(most, size=shape), jnp.int32)  # noqa: E731
    tones = np.sin(2 * np.pi * np.linspace(4, 45, ROWS)[:, None] * np.arange(260) / 100)  # Noise alone would have nearly equal embeddings.
    wave = lambda: jnp.asarray(tones + 0.3 * rng.standard_normal((ROWS, 260)), jnp.float32)  # noqa: E731
    return {
        "semantic": lambda: {"mulan": ids(5, ROWS, 3), "semantic": ids(11, ROWS, 8)},
        "mulan": lambda: {"wave": wave(), "text_ids": ids(19, ROWS, 5), "text_mask": jnp.ones((ROWS, 5), bool)},
        "melody": lambda: {"wave": wave(), "other_wave": wave(), "melody": jnp.arange(ROWS) % 5},
    }[task.name]()


@pytest.mark.parametrize("task", [stage_task(), mulan_task(), melody_task()], ids=lambda task: task.name)
def test_micro_batches_have_the_gradient_and_the_metrics_of_the_whole_batch(task):
    """Negatives of a contrastive loss are those of the whole batch."""
    state = quick(lambda key: sharding.unbox(task.init_state(key)))(jax.random.key(0, impl="rbg"))
    whole, parts = (quick(in_parts(task, count).train_step)(state, batch_of(task), KEY) for count in (1, 3))
    # After one step Adam's first moment is a tenth of the gradient.
    expected, grads = (optax.tree_utils.tree_get(after.opt_state, "mu") for after, _ in (whole, parts))
    assert optax.tree.norm(jax.tree.map(jnp.subtract, grads, expected)) < 1e-5 * optax.tree.norm(expected)
    assert floats(parts[1]) == pytest.approx(floats(whole[1]), rel=1e-5, abs=1e-6)


def test_evaluation_is_split_too():
    task, split = stage_task(), in_parts(stage_task(), 3)
    state, batch = quick(task.init_state)(jax.random.key(0, impl="rbg")), batch_of(task)
    whole, parts = (quick(each.eval_step)(state, batch, KEY) for each in (task, split))
    assert floats(parts) == pytest.approx(floats(whole), rel=1e-5)
    assert "length=3" in str(jax.make_jaxpr(split.eval_step)(state, batch, KEY))


def test_a_micro_batch_has_a_key_of_its_own_and_interleaved_rows():
    batch = jnp.arange(6.0)
    loss = lambda weight, rows, key: (weight * (rows.sum() + jax.random.uniform(key)), {"first": rows[0], "tokens": jnp.float32(len(rows))})  # noqa: E731
    (value, metrics), grad = jax.value_and_grad(mean_over(loss, batch, KEY, 3), has_aux=True)(2.0)
    draws = sum(float(jax.random.uniform(key)) for key in jax.random.split(KEY, 3))
    assert grad == pytest.approx((15 + draws) / 3) and value == pytest.approx(2 * grad)
    assert metrics == {"first": pytest.approx((0 + 1 + 2) / 3), "tokens": 6.0}  # Rows 0 and 3, 1 and 4, 2 and 5.


def test_the_second_embedding_has_the_noise_of_the_first():
    def embed(weight, rows, key):
        return jnp.sin(weight * rows * jax.random.normal(key, rows.shape))

    rows, keys = jnp.arange(1.0, 7.0), jax.random.split(KEY, 2)
    by_hand = lambda weight: jnp.stack([embed(weight, rows[i::2], keys[i]) for i in range(2)], axis=1).reshape(-1)  # noqa: E731
    ours = lambda weight: embed_in_parts(embed, weight, rows, KEY, 2)  # noqa: E731
    pairs = lambda embedded: lambda weight: jnp.sum(jnp.outer(embedded(weight), embedded(weight)[::-1]) ** 2)  # noqa: E731
    np.testing.assert_allclose(ours(0.3), by_hand(0.3), rtol=1e-6)
    np.testing.assert_allclose(jax.grad(pairs(ours))(0.3), jax.grad(pairs(by_hand))(0.3), rtol=1e-5)


# The gradients of a loss that is a mean over examples, and of a contrastive one, in micro-batches of each number, on 8 devices.
PROGRAM = """
    import json, re, jax, jax.numpy as jnp, numpy as np
    from musiclm_jax.training import sharding
    from musiclm_jax.training.accumulation import embed_in_parts, mean_over

    mesh = sharding.make_mesh(sharding.MeshConfig(data=2, fsdp=4))
    rows = sharding.put_batch({"rows": np.random.default_rng(0).standard_normal((32, 4096)).astype(np.float32)}, mesh)
    weights = np.ones((4096, 4), np.float32) / 64

    def mean(weights, batch, count):
        loss = lambda weights, batch, key: (jnp.mean(jnp.tanh(batch["rows"] @ weights) ** 2), {})
        return mean_over(loss, batch, None, count)(weights)

    def contrast(weights, batch, count):
        embedded = embed_in_parts(lambda weights, batch, key: jnp.tanh(batch["rows"] @ weights), weights, batch, None, count)
        return jnp.mean(jax.nn.logsumexp(embedded @ embedded.T, axis=1)), {}

    found = []
    for loss in (mean, contrast):
        for count in (1, 2):
            with sharding.activate(mesh):
                program = jax.jit(lambda weights, batch: jax.value_and_grad(loss, has_aux=True)(weights, batch, count)).lower(weights, rows).compile()
            collectives = re.findall(r" = (\\S+) (all-to-all|collective-permute|all-gather)(?:-start)?\\(", program.as_text())
            (value, _), grad = program(weights, rows)
            found.append([float(value), np.asarray(grad).sum().item(), [what for what in collectives if "4096" in what[0]]])
    print("RESULT", json.dumps(found))
"""


def test_devices_keep_their_rows():
    whole, parts, whole_contrast, parts_contrast = run_program(PROGRAM, devices=8)
    for one, other in ((whole, parts), (whole_contrast, parts_contrast)):
        assert other[:2] == pytest.approx(one[:2], rel=1e-5) and other[2] == []


def test_a_batch_that_does_not_split_is_named():
    mesh = jax.sharding.AbstractMesh((2, 2, 1), sharding.MESH_AXES)
    sharding.check_batch({"wave": np.zeros((24, 5))}, mesh, 3)
    with pytest.raises(UserError, match=r"a batch of 20 \(wave\) does not split into 3 micro-batches over 4 devices: choose a multiple of 12 as batch_size"):
        sharding.check_batch({"wave": np.zeros((20, 5))}, mesh, 3)


@pytest.mark.parametrize("recipe", [SoundStreamRecipe, SpectralCodecRecipe, W2vBertRecipe])
def test_statistics_of_a_batch_are_not_split(recipe):
    with pytest.raises(UserError, match="accumulate=2: .* choose accumulate=1"):
        recipe(accumulate=2)


def test_mistakes():
    with pytest.raises(UserError, match="accumulate=0: choose a whole number"):
        Recipe(accumulate=0)
