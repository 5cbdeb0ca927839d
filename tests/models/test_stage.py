import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_streams import STAGES, make_streams, stage_layout

from musiclm_jax.errors import UserError
from musiclm_jax.models.stage import Stage, StageConfig, StageDecoder, TimeBias, start_from_codebooks, variable_shapes
from musiclm_jax.nn import attention

TINY = StageConfig(dim=13, num_layers=2, num_heads=2, head_dim=5, mlp_dim=17, dropout=0.0, num_buckets=8, max_distance=11)
# Rotary positions instead of T5's bias.
ROTARY = {"rotary": 20.0, "num_buckets": 0, "head_dim": 6}
PAPER = make_streams(mulan=(12, 1024), semantic=1024, acoustic=(12, 1024))


@functools.cache
def build(name, config=TINY, batch=2, steps=4):
    layout = stage_layout(name)
    rng = np.random.default_rng(0)
    streams = {
        "mulan": rng.integers(5, size=(batch, 3)),
        "semantic": rng.integers(7, size=(batch, steps)),
        "acoustic": rng.integers(11, size=(batch, 2 * steps, 5)),
    }
    prefix_ids, codes = jnp.asarray(layout.prefix_ids(streams)), jnp.asarray(layout.target_codes(streams))
    stage = Stage(config, layout)
    return stage, nn.meta.unbox(jax.jit(stage.init)(jax.random.key(0), prefix_ids, codes)["params"]), prefix_ids, codes


@pytest.mark.parametrize("name,mulan,millions", [("semantic", False, 430.0), ("coarse", False, 438.4), ("fine", False, 427.9), ("fine", True, 453.0)])
def test_published_sizes(name, mulan, millions):
    layout = stage_layout(name, PAPER, coarse_levels=4, fine_sees_mulan=mulan)
    shape = jnp.zeros((1, 2), jnp.int32), jnp.zeros((1, 1, layout.target.levels), jnp.int32)
    params = jax.eval_shape(lambda: Stage(StageConfig(), layout).init(jax.random.key(0), *shape))["params"]
    assert round(sum(x.size for x in jax.tree.leaves(params)) / 1e6, 1) == millions


@pytest.mark.parametrize(
    "options",
    [{}, {"time_bias": True}, {"rotary": 20.0, "rotary_values": 9.0, "head_dim": 6}, ROTARY, ROTARY | {"time_bias": True}],
    ids=["T5", "time_bias", "rotary", "rotary alone", "rotary and time_bias"],
)
@pytest.mark.parametrize("name", STAGES)
def test_decoding_is_the_full_pass(name, options):
    config = dataclasses.replace(TINY, **options)
    stage, params, prefix_ids, codes = build(name, config)
    layout, levels = stage.layout, stage.layout.target.levels
    logits = jax.jit(stage.apply)({"params": params}, prefix_ids, codes)
    assert logits.shape == (*codes.shape, layout.target.codes) and logits.dtype == jnp.float32
    logits = logits.reshape(2, -1, layout.target.codes)
    ids = layout.to_ids(len(layout.prefix), codes)

    decoder = StageDecoder(config, layout)
    prepared = decoder.prepare(params)
    length = prefix_ids.shape[1]
    step_fn = jax.jit(functools.partial(decoder, prepared, num_steps=codes.shape[1]))
    step, cache = step_fn(prefix_ids, decoder.init_cache(2, length), position=0, level=0)
    np.testing.assert_allclose(step, logits[:, 0], atol=1e-5)
    cache = decoder.grow_cache(cache, length + ids.shape[1])
    for i in range(1, ids.shape[1]):
        at = length + i - 1
        step, cache = step_fn(ids[:, i - 1 : i], cache, position=at, level=i % levels)
        np.testing.assert_allclose(step, logits[:, i], atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"time_bias": True}, ROTARY, ROTARY | {"time_bias": True}])
@pytest.mark.parametrize("name", STAGES)
def test_a_fused_kernel_gets_what_plain_attention_gets(name, options, monkeypatch):
    def fused(query, key, value, *, bias, scale):
        # What cuDNN asks for: an even length, everything in bfloat16, a finite bias; it applies the causal mask itself.
        length = query.shape[2]
        assert length % 64 == 0 and query.dtype == jnp.bfloat16
        assert (bias is None) == (options == ROTARY)
        assert bias is None or (bias.shape[2:] == (length, length) and bias.dtype == jnp.bfloat16)
        mask, bias = jnp.tril(jnp.ones((1, 1, length, length), bool)), 0.0 if bias is None else bias
        return attention.dot_product_attention(query, key, value, bias=jnp.where(mask, bias, 7), mask=mask, scale=scale)

    monkeypatch.setattr(attention, "fused_causal_attention", fused)
    config = dataclasses.replace(TINY, dtype="bfloat16", **options)
    stage, params, prefix_ids, codes = build(name, config)
    plain = stage.apply({"params": params}, prefix_ids, codes)
    other = Stage(dataclasses.replace(config, attention_kernel="cudnn"), stage.layout).apply({"params": params}, prefix_ids, codes)
    np.testing.assert_allclose(other, plain, atol=0.06)  # Biases are rounded to bfloat16.


def test_a_fused_kernel_refuses_what_it_cannot_do():
    if jax.default_backend() == "cpu":
        with pytest.raises(UserError, match=r"attention_kernel='cudnn' cannot be used here \(.+\): choose attention_kernel='xla'"):
            build("semantic", dataclasses.replace(TINY, dtype="bfloat16", attention_kernel="cudnn"))
    for changes in ({"dtype": "float32"}, {"dropout": 0.1}, {"attention_dropout": 0.1}):
        with pytest.raises(UserError, match="set attention_dropout=0 and dtype='bfloat16'"):
            dataclasses.replace(TINY, **{"dtype": "bfloat16", "attention_kernel": "cudnn"} | changes)
    assert dataclasses.replace(TINY, dtype="bfloat16", attention_kernel="cudnn", dropout=0.1, attention_dropout=0).weights_dropout == 0


def test_attention_knows_positions_by_one_way_at_least():
    with pytest.raises(UserError, match="num_buckets=0, rotary=0: attention would not know positions"):
        dataclasses.replace(TINY, num_buckets=0)
    stage, params, _, _ = build("semantic", dataclasses.replace(TINY, **ROTARY))
    assert "bias" not in params["body"]


def test_parameters_do_not_need_the_kernel():
    layout, fused = stage_layout("coarse"), dataclasses.replace(TINY, dtype="bfloat16", attention_kernel="cudnn")
    assert variable_shapes(fused, layout) == variable_shapes(dataclasses.replace(fused, attention_kernel="xla"), layout)


def test_time_bias_starts_at_the_same_level_and_at_the_same_moment():
    # 3 MuLan tokens, 2 semantic ones, 4 frames of 2 levels; the query writes level 1 of frame 1.
    bias, _ = TimeBias(3, stage_layout("coarse")).init_with_output(jax.random.key(0), 4, jnp.array([8]), 13)
    slopes = np.array([0, 0, 0, -1, -1, -1, -1, 0, 0, -1, -1, -2, -2])
    own_level = np.array([0] * 5 + [0, 4] * 4)
    semantic = np.array([0] * 3 + [4] * 2 + [0] * 8)
    np.testing.assert_allclose(bias[0, :, 0], [slopes + own_level, slopes + semantic, slopes / 20], atol=1e-6)


def test_the_start_of_the_time_bias_does_not_depend_on_the_length():
    tables = [TimeBias(3, stage_layout("coarse")).init(jax.random.key(0), n, jnp.array([4]), 4)["params"] for n in (1, 4)]
    np.testing.assert_array_equal(*[nn.meta.unbox(table)["table"] for table in tables])


def test_time_bias_without_a_timed_prefix_is_slopes_alone():
    # 12 MuLan tokens and 4 semantic ones.
    bias, _ = TimeBias(3, stage_layout("semantic", PAPER)).init_with_output(jax.random.key(0), 4, jnp.array([14]), 15)
    slopes = np.array([0] * 12 + [-2, -1, 0])
    np.testing.assert_allclose(bias[0, :, 0], [slopes, slopes * 0.05**0.5, slopes / 20], atol=1e-6)


def test_time_bias_tells_segments_levels_and_times_apart():
    layout = stage_layout("coarse")
    params = {"table": jnp.arange(2 * 4 * 34.0).reshape(2, 4, 34)}
    segments, times, levels = layout.positions(40)
    queries, num_keys = np.array([23, 40, 102]), 100
    bias = TimeBias(2, layout).apply({"params": params}, 40, jnp.asarray(queries), num_keys)
    for head, t, s in np.ndindex(2, 3, num_keys):
        query = queries[t]
        slot = 33 if times[s] < 0 else np.clip(times[s] - times[query], -16, 16) + 16
        row = segments[s] + (segments[s] == 2 and levels[s] == levels[query])
        assert bias[0, head, t, s] == params["table"][head, row, slot]


def test_time_bias_of_one_level_has_a_row_per_segment():
    params = TimeBias(2, stage_layout("semantic", PAPER)).init(jax.random.key(0), 4, jnp.array([12]), 16)["params"]
    assert nn.meta.unbox(params)["table"].shape == (2, 2, 34)


def test_hidden_steps_are_not_seen():
    stage, params, prefix_ids, codes = build("coarse")
    hidden = jnp.zeros(codes.shape[:2], bool).at[:, 2].set(True)
    run = jax.jit(lambda codes: stage.apply({"params": params}, prefix_ids, codes, hidden_steps=hidden))
    same = np.asarray(run(codes)) == np.asarray(run(codes.at[:, 2].set((codes[:, 2] + 1) % 11)))
    assert same.all()
    assert not np.allclose(run(codes)[:, 3], stage.apply({"params": params}, prefix_ids, codes)[:, 3])


def test_logits_are_the_legal_rows_of_the_full_head():
    stage, params, prefix_ids, codes = build("coarse")
    ids = jnp.concatenate([prefix_ids, stage.layout.to_ids(2, codes)], axis=1)

    @jax.jit
    def run(params):
        everything = lambda stage, ids: stage.body(stage.embed(ids))[0] @ stage.head.T  # noqa: E731
        return stage.apply({"params": params}, prefix_ids, codes), stage.apply({"params": params}, ids, method=everything)

    logits, full = run(params)  # [B, T, Q, C], [B, P + T * Q, V]
    for i in range(codes.shape[1] * 2):
        low = stage.layout.target_offset + (i % 2) * 11
        np.testing.assert_allclose(full[:, prefix_ids.shape[1] - 1 + i, low : low + 11], logits.reshape(2, -1, 11)[:, i], atol=1e-5)


def test_codes_do_not_see_themselves_or_later_ones():
    stage, params, prefix_ids, codes = build("coarse")
    changed = codes.at[:, 3, 1].set((codes[:, 3, 1] + 1) % 11)
    run = jax.jit(stage.apply)
    before, after = (np.asarray(run({"params": params}, prefix_ids, c)).reshape(2, -1, 11) for c in (codes, changed))
    same = (before == after).all(axis=(0, 2))
    np.testing.assert_array_equal(same, np.arange(codes.shape[1] * 2) <= 3 * 2 + 1)


def test_the_mask_row_is_input_only():
    stage, params, prefix_ids, codes = build("semantic")
    vocab_size = stage.layout.vocab_size
    assert params["embed"]["embedding"].shape == (vocab_size + 1, 13) and params["head"].shape == (vocab_size, 13)
    run = jax.jit(stage.apply)
    with_text, without = (run({"params": params}, ids, codes) for ids in (prefix_ids, jnp.full_like(prefix_ids, stage.layout.mask_id)))
    assert np.abs(with_text - without).max() > 1e-3


def test_codes_that_sound_alike_start_alike():
    stage, params, _, _ = build("coarse")
    rng = np.random.default_rng(0)
    acoustic = rng.standard_normal((5, 11, 3))
    acoustic[1, 4] = acoustic[1, 9]
    started = start_from_codebooks(params, stage.layout, {"acoustic": acoustic}, rng=jax.random.key(1))
    embedding, head = np.asarray(started["embed"]["embedding"]), np.asarray(started["head"])
    first = stage.layout.target_offset
    # Other streams and the mask row are left as they were.
    np.testing.assert_array_equal(embedding[:first], params["embed"]["embedding"][:first])
    np.testing.assert_array_equal(embedding[-1], params["embed"]["embedding"][-1])
    second = slice(first + 11, first + 22)
    np.testing.assert_allclose(head[second][4], head[second][9], atol=1e-6)
    assert np.linalg.norm(embedding[second][4] - embedding[second][9]) < 0.7 * np.linalg.norm(embedding[second][4] - embedding[second][5])
    np.testing.assert_allclose(np.square(embedding[first:-1]).mean(), 1, rtol=0.3)
    np.testing.assert_allclose(np.square(head[first:]).mean(), 1 / 13, rtol=0.05)
    assert set(started) == set(params)


def test_a_codebook_of_another_model_is_named():
    stage, params, _, _ = build("coarse")
    with pytest.raises(ValueError, match="semantic has codebooks of 6 codes, its layout has 7"):
        start_from_codebooks(params, stage.layout, {"semantic": np.zeros((1, 6, 3))}, rng=jax.random.key(1))


def test_prepared_parameters_are_left_alone():
    stage, params, _, _ = build("semantic")
    decoder = StageDecoder(TINY, stage.layout)
    prepared = decoder.prepare(params)
    jax.tree.map(np.testing.assert_array_equal, decoder.prepare(prepared), prepared)
    assert prepared["body"]["layer_1"]["mlp"]["in_kernel"].shape == (13, 2, 17)
