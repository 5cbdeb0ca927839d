import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_streams import stage_layout
from toy_decoder import ToyDecoder

from musiclm_jax.errors import UserError
from musiclm_jax.generation import sampler as sampling
from musiclm_jax.generation.devices import Weights
from musiclm_jax.generation.sampler import SamplingConfig, cache_lengths, draw, filter_logits, sample_codes
from musiclm_jax.models.stage import Stage, StageConfig, StageDecoder
from musiclm_jax.tokens import Segment, StageLayout


class Scripted(ToyDecoder):
    """The logits are a table [Q, C, C] over the last code."""

    def logits(self, params, ids, cache, level):
        return params[level, (ids[:, -1] - self.layout.target_offset) % self.layout.target.codes]


LAYOUT = StageLayout("toy", (Segment("mulan", 3, 5),), Segment("acoustic", 2, 7, 50))
PREFIX = np.array([[0, 5, 11], [4, 9, 14], [1, 6, 13]], np.int32)


def table(seed=0):
    return jax.random.normal(jax.random.key(seed), (2, 7, 7))


def keys_of(number, seed=0):
    return np.asarray(jax.random.key_data(jax.random.split(jax.random.key(seed), number)))


@pytest.mark.parametrize("min_bucket", [4, 512])
def test_greedy_follows_the_script(monkeypatch, min_bucket):
    monkeypatch.setattr(sampling, "MIN_BUCKET", min_bucket)
    script = np.asarray(table())
    codes = sample_codes(Scripted(LAYOUT), Weights(table()), PREFIX, num_steps=5, keys=keys_of(3), sampling=SamplingConfig(0.0))
    assert codes.shape == (3, 5, 2)
    for row, prefix in zip(np.asarray(codes).reshape(3, -1), np.asarray(PREFIX)):
        last = (prefix[-1] - LAYOUT.target_offset) % 7
        for i, code in enumerate(row):
            assert code == script[i % 2, last].argmax()
            last = code


def test_the_cache_holds_the_sequence_whatever_the_buckets(monkeypatch):
    seen = {}
    monkeypatch.setattr(sampling, "MIN_BUCKET", 5)
    decode = sampling._decode

    def spy(*args):
        state = decode(*args)
        seen[state.cache.shape[1]] = np.asarray(state.cache)
        return state

    monkeypatch.setattr(sampling, "_decode", spy)
    codes = sample_codes(Scripted(LAYOUT), Weights(table()), PREFIX, num_steps=7, keys=keys_of(3))
    assert sorted(seen) == cache_lengths(17) == [6, 12, 17]
    ids = LAYOUT.to_ids(1, codes)
    np.testing.assert_array_equal(seen[17], np.concatenate([PREFIX, ids], axis=1)[:, :17].astype(int) * (np.arange(17) < 16) - (np.arange(17) == 16))


def test_cuts_and_batch_mates_do_not_matter(monkeypatch):
    keys, weights = keys_of(3), Weights(table())
    run = lambda rows=slice(None), **kwargs: sample_codes(Scripted(LAYOUT), weights, PREFIX[rows], num_steps=6, keys=keys[rows], **kwargs)  # noqa: E731
    together = run()
    np.testing.assert_array_equal(together, np.concatenate([run(slice(i, i + 1)) for i in range(3)]))
    np.testing.assert_array_equal(together, run())  # pure
    monkeypatch.setattr(sampling, "MIN_BUCKET", 3)
    monkeypatch.setattr(sampling, "PROGRESS_STEPS", 2)
    calls = []
    np.testing.assert_array_equal(together, run(on_progress=lambda *args: calls.append(args)))
    assert calls[-1] == (12, 12) and [done for done, _ in calls] == sorted({done for done, _ in calls})
    prompted = run(prompt=together[:, :2])  # index i has the same key with a prompt as without
    np.testing.assert_array_equal(together, prompted)
    for until in (1, 2, 5):  # Fewer steps are the beginning of more.
        np.testing.assert_array_equal(together[:, :until], run(until=until))
    np.testing.assert_array_equal(together[:, :4], run(until=4, prompt=together[:, :2]))


def test_guidance_mixes_with_and_without_text():
    class Textual(Scripted):
        def __call__(self, params, ids, cache, *, num_steps, position, level):
            cache = jax.lax.dynamic_update_slice(cache, ids, (0, position))
            masked = cache[:, 0] == self.layout.mask_id
            return jnp.where(masked[:, None], params["without"], params["with"]), cache

    params = {"with": jnp.array([1.0, 0.9, 0, 0, 0, 0, 0]), "without": jnp.array([1.0, 0, 0, 0, 0, 0, 0])}
    run = lambda guidance: sample_codes(  # noqa: E731
        Textual(LAYOUT), Weights(params), PREFIX, num_steps=2, keys=keys_of(3), sampling=SamplingConfig(0.0, guidance=guidance)
    )
    np.testing.assert_array_equal(run(1.0), np.zeros((3, 2, 2)))
    np.testing.assert_array_equal(run(3.0), np.ones((3, 2, 2)))
    # Pushed away from a prefix that gives the same logits, guidance changes nothing.
    options = {"num_steps": 2, "keys": keys_of(3), "sampling": SamplingConfig(0.0, guidance=3.0), "free_ids": PREFIX}
    np.testing.assert_array_equal(sample_codes(Textual(LAYOUT), Weights(params), PREFIX, **options), np.zeros((3, 2, 2)))


@functools.cache
def build_stage():
    layout = stage_layout("coarse")
    config = StageConfig(dim=13, num_layers=2, num_heads=2, head_dim=5, mlp_dim=17, dropout=0.0)
    prefix_ids = layout.prefix_ids({"mulan": np.arange(9).reshape(3, 3) % 5, "semantic": np.arange(12).reshape(3, 4) % 7})
    params = jax.jit(Stage(config, layout).init)(jax.random.key(0), prefix_ids, jnp.zeros((3, 1, 2), jnp.int32))["params"]
    decoder = StageDecoder(config, layout)
    return decoder, params, Weights(decoder.prepare(params)), prefix_ids


def test_a_stage_greedily_is_argmax_of_the_full_pass(monkeypatch):
    monkeypatch.setattr(sampling, "MIN_BUCKET", 9)
    decoder, params, prepared, prefix_ids = build_stage()
    codes = sample_codes(decoder, prepared, prefix_ids, num_steps=8, keys=keys_of(3), sampling=SamplingConfig(0.0))
    logits = jax.jit(Stage(decoder.config, decoder.layout).apply)({"params": params}, prefix_ids, codes)
    np.testing.assert_array_equal(codes, logits.argmax(-1))


def test_a_stage_row_does_not_depend_on_its_batch():
    decoder, _, prepared, prefix_ids = build_stage()
    keys = keys_of(3, seed=1)
    together = sample_codes(decoder, prepared, prefix_ids, num_steps=5, keys=keys)
    alone = [sample_codes(decoder, prepared, prefix_ids[i : i + 1], num_steps=5, keys=keys[i : i + 1]) for i in range(3)]
    np.testing.assert_array_equal(together, np.concatenate(alone))
    assert len({row.tobytes() for row in np.asarray(together)}) == 3


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_a_stage_goes_on_in_several_ways_from_one_cache(guidance):
    decoder, _, prepared, prefix_ids = build_stage()
    prompt = np.random.default_rng(3).integers(11, size=(3, 2, 2), dtype=np.int32)
    run = lambda prefix_ids, prompt: sample_codes(  # noqa: E731
        decoder, prepared, prefix_ids, num_steps=6, keys=keys_of(12, seed=1), prompt=prompt, sampling=SamplingConfig(guidance=guidance)
    )
    codes = run(prefix_ids, prompt)
    np.testing.assert_array_equal(codes, run(np.repeat(prefix_ids, 4, axis=0), np.repeat(prompt, 4, axis=0)))
    np.testing.assert_array_equal(codes[:, :2], np.repeat(prompt, 4, axis=0))
    assert len({row.tobytes() for row in codes}) == 12


def test_hot_draws_stay_in_the_block():
    decoder, _, prepared, prefix_ids = build_stage()
    rows = 500
    codes = sample_codes(decoder, prepared, np.tile(prefix_ids[:1], (rows, 1)), num_steps=10, keys=keys_of(rows, seed=1), sampling=SamplingConfig(10.0))
    assert codes.size == 10_000
    assert np.unique(codes).tolist() == list(range(11))


def test_draws_follow_the_softmax():
    logits = jnp.array([0.0, 1.0, 2.0])
    keys = jax.random.split(jax.random.key(0), 20_000)
    for temperature in (0.5, 1.0):
        counts = np.bincount(draw(jnp.tile(logits, (20_000, 1)), keys, SamplingConfig(temperature)), minlength=3)
        np.testing.assert_allclose(counts / 20_000, jax.nn.softmax(logits / temperature), atol=0.015)


@pytest.mark.parametrize("top_k", [0, 1, 3, 13, 99])
@pytest.mark.parametrize("top_p", [1.0, 0.9, 0.5, 1e-6])
def test_filters_against_numpy(top_k, top_p):
    logits = np.asarray(2 * jax.random.normal(jax.random.key(0), (5, 13)))
    out = np.asarray(filter_logits(jnp.asarray(logits), top_k=top_k, top_p=top_p))
    for row, filtered in zip(logits, out):
        order = np.argsort(-row)[: top_k or 13]
        probability = np.exp(row[order]) / np.exp(row[order]).sum()
        keep = order[np.concatenate([[0], np.cumsum(probability)[:-1]]) < top_p]
        np.testing.assert_array_equal(np.flatnonzero(np.isfinite(filtered)), np.sort(keep))
        np.testing.assert_array_equal(filtered[keep], row[keep])


@pytest.mark.parametrize(
    "field,value",
    [
        ("temperature", -1.0),
        ("temperature", float("nan")),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", 1.5),
        ("guidance", -1.0),
    ],
)
def test_nonsense_is_refused(field, value):
    with pytest.raises(UserError, match=f"{field}="):
        SamplingConfig(**{field: value})


def test_wrong_calls_are_named():
    run = lambda number=3, **options: sample_codes(Scripted(LAYOUT), Weights(table()), PREFIX, num_steps=2, keys=keys_of(number), **options)  # noqa: E731
    with pytest.raises(ValueError, match="2 keys and None prompts for 3 prefixes"):
        run(2)
    with pytest.raises(ValueError, match="nothing to draw"):
        run(prompt=np.zeros((3, 2, 2), np.int32))
    with pytest.raises(ValueError, match="too much"):
        run(until=3)


@pytest.mark.parametrize("total", [1, 511, 513, 1800, 2262])
def test_cache_lengths_reach_the_end(total):
    lengths = cache_lengths(total)
    assert lengths[-1] == total and len(lengths) <= 3 and lengths == sorted(set(lengths))
