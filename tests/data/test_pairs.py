import numpy as np
import pytest

from musiclm_jax.data.pairs import pair_source
from musiclm_jax.errors import UserError


def render(clip, variant):
    """Sample n of clip c in variant v says so: 10000 c + 1000 v + n."""
    return np.arange(53) + 10_000 * clip + 1_000 * variant


def source(**changes):
    return pair_source(render, **{"clips": (3, 5, 8, 13), "num_variants": 3, "window_samples": 17, "batch_size": 3, "seed": 0, **changes})


def test_pairs_are_the_same_window_of_one_clip_in_two_variants():
    variants, starts = set(), set()
    for step in range(20):
        batch = source()(step)
        assert {name: value.shape for name, value in batch.items()} == {"wave": (3, 17), "other_wave": (3, 17), "melody": (3,)}
        assert batch["wave"].dtype == batch["other_wave"].dtype == np.float32 and batch["melody"].dtype == np.int32
        assert len(set(batch["melody"])) == 3
        for wave, other, clip in zip(batch["wave"], batch["other_wave"], batch["melody"]):
            np.testing.assert_array_equal(np.diff(wave), 1)
            (one, start), (two, same) = (divmod(int(each[0]) - 10_000 * clip, 1_000) for each in (wave, other))
            assert start == same <= 53 - 17 and one != two
            variants |= {(one, two)}
            starts.add(start)
    assert variants == {(i, j) for i in range(3) for j in range(3) if i != j} and len(starts) > 10


def test_a_batch_is_a_function_of_seed_and_step():
    one = source()(7)
    for name, value in source()(7).items():
        np.testing.assert_array_equal(one[name], value)
    assert any(not np.array_equal(one["wave"], other["wave"]) for other in (source()(8), source(seed=1)(7)))


def test_few_and_short_clips():
    short = pair_source(lambda clip, variant: np.ones(11 + variant), [2], num_variants=2, window_samples=17, batch_size=3, seed=0)(0)
    np.testing.assert_array_equal(short["melody"], [2, 2, 2])
    for name in ("wave", "other_wave"):  # Cut to the shorter one, then padded.
        np.testing.assert_array_equal(short[name], np.tile(np.arange(17) < 11, (3, 1)))


@pytest.mark.parametrize("changes", [dict(num_variants=1), dict(clips=())])
def test_no_pairs(changes):
    with pytest.raises(UserError, match="make no pairs"):
        source(**changes)
