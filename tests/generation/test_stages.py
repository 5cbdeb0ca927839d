import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from musiclm_jax.errors import UserError
from musiclm_jax.generation import stages as windows_module
from musiclm_jax.generation.sampler import SamplingConfig
from musiclm_jax.generation.stages import WindowConfig, generate_coarse, generate_fine, generate_semantic, window_starts
from musiclm_jax.specs import TokenSpec
from musiclm_jax.tokens import StageLayout, stage_layout

TOKENS = TokenSpec(mulan_levels=3, mulan_codes=5, semantic_codes=97, acoustic_levels=5, acoustic_codes=97, coarse_levels=2)
# 6 tokens by 3; 12 frames by 8; 4 frames
WINDOWS = WindowConfig(semantic_window_sec=0.24, semantic_hop_sec=0.12, coarse_window_sec=0.24, coarse_hop_sec=0.16, fine_window_sec=0.08)


@dataclasses.dataclass(frozen=True)
class Hash:
    """A decoder whose next code is a hash of everything in its cache: it differs when any id or position does."""

    layout: StageLayout

    def prepare(self, params):
        return params

    def init_cache(self, batch, length):
        return jnp.zeros((batch, length), jnp.int32)

    def grow_cache(self, cache, length):
        return jnp.pad(cache, ((0, 0), (0, length - cache.shape[1])))

    def branch_cache(self, cache, batch):
        return jnp.repeat(cache, batch // len(cache), axis=0)

    def __call__(self, params, ids, cache, *, num_steps, position, level):
        cache = jax.lax.dynamic_update_slice(cache, ids, (0, position))
        weights = jnp.arange(cache.shape[1]) * 7919 % 83 + 1
        code = ((cache * weights).sum(-1) + 31 * level) % self.layout.target.codes
        return 3.0 * jax.nn.one_hot(code, self.layout.target.codes), cache


def keys(n=2):
    return jax.random.split(jax.random.key(0), n)


MULAN = jnp.array([[0, 3, 2], [4, 1, 0]])


@pytest.mark.parametrize("total,expected", [(3, [0]), (6, [0]), (7, [0, 1]), (9, [0, 3]), (12, [0, 3, 6]), (14, [0, 3, 6, 8]), (30, [*range(0, 25, 3)])])
def test_window_starts(total, expected):
    assert window_starts(total, window=6, hop=3) == expected


def reference(stage, conditions, total, window, hop, keys, sampling):
    """SPEC's loop, written out: each window repeats the end of the last one and adds the rest."""
    import zlib

    out, start = None, 0
    while out is None or out.shape[1] < total:
        start = 0 if out is None else min(start + hop, total - window)
        prompt = None if out is None else out[:, start:]
        window_keys = jax.vmap(lambda k: jax.random.fold_in(jax.random.fold_in(k, zlib.crc32(stage.layout.name.encode())), start))(keys)
        piece = windows_module.sample_codes(
            stage, None, stage.layout.prefix_ids(conditions(start)), num_steps=window, keys=window_keys, sampling=sampling, prompt=prompt
        )
        out = piece if out is None else jnp.concatenate([out[:, :start], piece], axis=1)  # the prompt comes back as it went in
    return out


@pytest.mark.parametrize("total", [4, 6, 12, 13, 30])  # below, 1x, 2x, odd, 5x the window
def test_semantic(total):
    stage = Hash(stage_layout("semantic", TOKENS))
    out = generate_semantic(stage, None, MULAN, num_tokens=total, keys=keys(), windows=WINDOWS)
    assert out.shape == (2, total)
    expected = reference(stage, lambda start: {"mulan": MULAN}, total, min(6, total), 3, keys(), SamplingConfig())
    np.testing.assert_array_equal(out, expected[:, :, 0])


@pytest.mark.parametrize("total,known", [(4, 1), (6, 3), (13, 2), (13, 6), (13, 8), (13, 10)])
def test_semantic_goes_on_from_a_prompt(total, known):
    stage = Hash(stage_layout("semantic", TOKENS))
    run = lambda **options: generate_semantic(stage, None, MULAN, num_tokens=total, keys=keys(), windows=WINDOWS, **options)  # noqa: E731
    whole = run()
    np.testing.assert_array_equal(run(prompt=whole[:, :known]), whole)
    other = run(prompt=(whole[:, :known] + 1) % 97)
    np.testing.assert_array_equal(other[:, :known], (whole[:, :known] + 1) % 97)
    assert (other[:, known:] != whole[:, known:]).any()


@pytest.mark.parametrize("guidance", [1.0, 2.0])
@pytest.mark.parametrize("total,known", [(6, 3), (13, 8)])
def test_a_prompt_that_goes_on_in_several_ways_is_read_once(total, known, guidance):
    stage = Hash(stage_layout("semantic", TOKENS))
    options = {"num_tokens": total, "keys": keys(6), "windows": WINDOWS, "sampling": SamplingConfig(2.0, guidance=guidance)}
    prompt = jax.random.randint(jax.random.key(5), (2, known), 0, 97)
    run = lambda prompt: generate_semantic(stage, None, jnp.repeat(MULAN, 3, axis=0), prompt=prompt, **options)  # noqa: E731
    np.testing.assert_array_equal(run(prompt), run(jnp.repeat(prompt, 3, axis=0)))


@pytest.mark.parametrize("total", [4, 6, 13, 30])
def test_coarse(total):
    stage = Hash(stage_layout("coarse", TOKENS))
    semantic = jax.random.randint(jax.random.key(5), (2, total), 0, 97)
    out = generate_coarse(stage, None, MULAN, semantic, keys=keys(), windows=WINDOWS)
    assert out.shape == (2, 2 * total, 2)
    window = min(12, 2 * total)
    conditions = lambda start: {"mulan": MULAN, "semantic": semantic[:, start // 2 : (start + window) // 2]}  # noqa: E731
    np.testing.assert_array_equal(out, reference(stage, conditions, 2 * total, window, 8, keys(), SamplingConfig(0.95)))


@pytest.mark.parametrize("total,max_fine_batch", [(2, 32), (4, 32), (8, 32), (10, 32), (20, 32), (20, 3)])
def test_fine_windows_are_independent(total, max_fine_batch):
    stage = Hash(stage_layout("fine", TOKENS))
    coarse = jax.random.randint(jax.random.key(5), (2, total, 2), 0, 97)
    run = lambda coarse: np.asarray(  # noqa: E731
        generate_fine(stage, None, coarse, keys=keys(), windows=dataclasses.replace(WINDOWS, max_fine_batch=max_fine_batch))
    )
    out = run(coarse)
    assert out.shape == (2, total, 5)
    np.testing.assert_array_equal(out[..., :2], coarse)
    if total % 4 == 0 and total > 4:  # the first window alone, and a change in the last one
        np.testing.assert_array_equal(run(coarse[:, :4]), out[:, :4])
        changed = run(coarse.at[:, -1].add(1))
        np.testing.assert_array_equal(changed[:, :-4], out[:, :-4])
        assert (changed[:, -4:, 2:] != out[:, -4:, 2:]).any()


def test_stages_draw_independently_and_clips_stand_alone():
    stage = Hash(stage_layout("semantic", TOKENS))
    both = generate_semantic(stage, None, MULAN, num_tokens=13, keys=keys(), windows=WINDOWS, sampling=SamplingConfig(5.0))
    second = generate_semantic(stage, None, MULAN[1:], num_tokens=13, keys=keys()[1:], windows=WINDOWS, sampling=SamplingConfig(5.0))
    np.testing.assert_array_equal(both[1:], second)
    first, other = windows_module._fold(keys(), "semantic"), windows_module._fold(keys(), "coarse")
    assert (jax.random.key_data(first) != jax.random.key_data(other)).any(axis=1).all()


def test_progress_counts_every_new_token_once():
    calls = []
    generate_semantic(
        Hash(stage_layout("semantic", TOKENS)), None, MULAN, num_tokens=13, keys=keys(), windows=WINDOWS, on_progress=lambda *a: calls.append(a)
    )
    assert [done for done, _ in calls] == [1, 6, 7, 9, 10, 12, 13] and {total for _, total in calls} == {13}


def test_nonsense_is_refused():
    with pytest.raises(UserError, match="coarse_hop_sec=11"):
        WindowConfig(coarse_hop_sec=11.0)
    with pytest.raises(UserError, match="fine_window_sec=0"):
        WindowConfig(fine_window_sec=0.0)
