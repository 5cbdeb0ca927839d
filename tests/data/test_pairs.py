import dataclasses

import numpy as np
import pytest

from musiclm_jax.data.clips import Clip, ClipStore
from musiclm_jax.data.pairs import pair_source, renderings
from musiclm_jax.errors import UserError

CROP = 960  # The shortest crop there is: 40 ms.


def store(clips):
    """clips: (melody, split, length). Sample n of clip c says so: 3000 c + n."""
    offsets = np.concatenate([[0], np.cumsum([length for _, _, length in clips])])
    samples = np.concatenate([3000 * c + np.arange(length) for c, (_, _, length) in enumerate(clips)]).astype(np.int16)
    entries = [Clip(f"{c}.wav", int(offsets[c]), length, (), split, {}, melody) for c, (melody, split, length) in enumerate(clips)]
    return ClipStore(samples, tuple(entries), 24_000)


STORE = store([("b", "train", 2999), ("a", "train", 2500), (None, "train", 1000), ("b", "train", 2900), ("a", "train", 2999), ("b", "train", 2999)]
              + [("c", "train", 1700), ("d", "test", 1800), ("d", "test", 1800)])  # fmt: skip


def source(clips=STORE, **changes):
    return pair_source(clips, **{"split": "train", "crop_sec": 0.04, "batch_size": 2, "seed": 0, **changes})


def test_renderings_are_grouped_by_melody():
    names = lambda split: [[clip.file_name for clip in clips] for clips in renderings(STORE, split)]  # noqa: E731
    assert names("train") == [["1.wav", "4.wav"], ["0.wav", "3.wav", "5.wav"]]
    assert names("test") == [["7.wav", "8.wav"]]


def test_pairs_are_the_same_crop_of_two_renderings_of_one_melody():
    pairs, starts = set(), set()
    for step in range(40):
        batch = source()(step)
        assert {name: value.shape for name, value in batch.items()} == {"wave": (2, CROP), "other_wave": (2, CROP), "melody": (2,)}
        assert batch["wave"].dtype == batch["other_wave"].dtype == np.float32 and batch["melody"].dtype == np.int32
        assert set(batch["melody"]) == {0, 1}
        for wave, other, melody in zip(batch["wave"] * 32768, batch["other_wave"] * 32768, batch["melody"]):
            np.testing.assert_array_equal(np.diff(wave), 1)
            (one, start), (two, same) = (divmod(int(each[0]), 3000) for each in (wave, other))
            assert start == same <= (2900 if melody else 2500) + 99 - CROP and one != two
            assert {one, two} <= ({0, 3, 5} if melody else {1, 4})
            pairs |= {(one, two)}
            starts.add(start)
    assert len(pairs) == 2 + 6 and len(starts) > 20


def test_a_batch_is_a_function_of_seed_and_step():
    one = source()(7)
    for name, value in source()(7).items():
        np.testing.assert_array_equal(one[name], value)
    assert any(not np.array_equal(one["wave"], other["wave"]) for other in (source()(8), source(seed=1)(7)))


def test_few_and_short_clips():
    clips = store([("a", "train", 500), ("a", "train", 600)])
    ones = dataclasses.replace(clips, samples=np.full(1100, 16384, np.int16))
    short = source(ones, batch_size=3)(0)
    np.testing.assert_array_equal(short["melody"], [0, 0, 0])
    for name in ("wave", "other_wave"):  # Cut to the shorter one, then padded.
        np.testing.assert_array_equal(short[name], np.tile(np.where(np.arange(CROP) < 500, 0.5, 0), (3, 1)))


def test_no_pairs():
    with pytest.raises(UserError, match="no melody of split 'test' has two renderings.*--variants"):
        source(store([("a", "train", 1000), ("a", "train", 1000), ("b", "test", 1000)]), split="test")
