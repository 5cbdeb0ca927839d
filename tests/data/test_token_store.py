"""Windows over clips, windows under crops, and the batches of the stages."""

import dataclasses

import numpy as np
import pytest

from musiclm_jax.data.clips import Clip, ClipStore
from musiclm_jax.data.token_store import TokenArray, covering_windows, crop_source, long_enough, offsets, pieces, wave_batches
from musiclm_jax.errors import UserError
from musiclm_jax.specs import AudioSpec

AUDIO = AudioSpec()


def clip_store(*lengths, split="train"):
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    samples = np.arange(offsets[-1], dtype=np.int16)
    clips = tuple(Clip(f"{i}.wav", int(offsets[i]), n, ("a", "b"), split, {}) for i, n in enumerate(lengths))
    return ClipStore(samples, clips, 24_000)


@pytest.mark.parametrize(("window", "context"), [(7, 0), (7, 2), (11, 5)])
def test_pieces_cover_every_token_once_with_its_context(window, context):
    lengths = [1, 5, 35, 36, 50, 171]
    seen = [np.zeros(-(-n // 5), int) for n in lengths]
    for piece in pieces(lengths, token_samples=5, window=window, context=context):
        total = len(seen[piece.clip])
        seen[piece.clip][piece.at : piece.at + piece.keep] += 1
        assert piece.start + piece.skip * 5 == piece.at * 5 and piece.skip + piece.keep <= window and piece.keep > 0
        assert piece.skip >= min(context, piece.at)  # Context wherever there is any.
        assert piece.start // 5 + window <= total or piece.start == 0  # Padding only where a clip is shorter than a window.
    assert all((s == 1).all() for s in seen)


def test_wave_batches_have_one_shape():
    store = clip_store(7, 5)
    batches = list(wave_batches(store, [(0, 0), (0, 5), (1, 0)], samples=5, batch_size=2))
    assert [batch.shape for batch in batches] == [(2, 5)] * 2
    np.testing.assert_array_equal(batches[0] * 32768, [[0, 1, 2, 3, 4], [5, 6, 0, 0, 0]])
    np.testing.assert_array_equal(batches[1] * 32768, [[7, 8, 9, 10, 11], [0] * 5])


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [
        (0, 30, range(21)),  # All windows of a 30 s clip.
        (4, 20, range(4, 11)),  # Those inside a long crop.
        (4.4, 20, range(5, 11)),
        (4, 14, [4]),  # Exactly one.
        (4.4, 14.4, [4]),  # The nearest one.
        (12, 15, range(5, 13)),  # All that contain a short crop.
        (0, 3, [0]),
        (27, 30, [20]),
    ],
)
def test_covering_windows(start, end, expected):
    where = covering_windows(start, end, num_windows=21, window_sec=10.0, hop_sec=1.0)
    assert list(range(21)[where]) == list(expected)


def token_arrays(store):
    """Tokens that number themselves: semantic n, acoustic 2n and 2n + 1 in three levels."""
    total = sum(AUDIO.semantic_tokens(clip.length / 24_000) for clip in store.clips)
    at = offsets(AUDIO.semantic_tokens(clip.length / 24_000) for clip in store.clips)
    semantic = TokenArray(np.arange(total, dtype=np.int16), at, 25)
    return semantic, TokenArray(np.stack([np.arange(2 * total)] * 3, axis=1).astype(np.int16), 2 * at, 50)


def store_of(*seconds, split="train"):
    return clip_store(*(round(s * 24_000) for s in seconds), split=split)


def source(store, **changes):
    semantic, acoustic = token_arrays(store)
    options = {"split": "train", "crop_sec": 2.0, "batch_size": 3, "seed": 1, "spec": AUDIO} | changes
    return crop_source(store, options.pop("tokens", {"semantic": semantic, "acoustic": acoustic}), **options)


def test_streams_of_a_crop_line_up_and_depend_on_the_step_only():
    store = store_of(12.0, 3.0, 11.5)
    draws, at = source(store), token_arrays(store)[0].at
    seen = set()
    for step in range(20):
        batch, again = draws(step), draws(step)
        assert batch["semantic"].shape == (3, 50) and batch["acoustic"].shape == (3, 100, 3)
        np.testing.assert_array_equal(batch["acoustic"][:, ::2, 0], 2 * batch["semantic"])
        for name in batch:
            assert batch[name].dtype == np.int32
            np.testing.assert_array_equal(batch[name], again[name])
        clip = np.searchsorted(at, batch["semantic"][:, 0], side="right") - 1
        assert sorted(clip) == [0, 1, 2]  # Three clips, a batch of three: each once.
        assert (batch["semantic"][:, -1] < at[clip + 1]).all()
        seen |= set(batch["semantic"][:, 0])
    assert len(seen) > 20


def test_a_stream_of_ones_own_is_asked_for_the_same_crops():
    class Asked:
        def crops(self, clips, starts_sec, crop_sec, *, rows, rng, text_share):
            return np.array([[clip, round(25 * start), round(10 * crop_sec), round(10 * text_share)] for clip, start in zip(clips, starts_sec)], np.int32)

    store = store_of(5.0, 7.0)
    semantic, _ = token_arrays(store)
    batch = source(store, tokens={"semantic": semantic, "own": Asked()}, text_share=0.3)(4)
    np.testing.assert_array_equal(semantic.at[batch["own"][:, 0]] + batch["own"][:, 1], batch["semantic"][:, 0])
    assert (batch["own"][:, 2:] == [20, 3]).all()


def test_a_share_of_crops_is_the_end_of_a_clip():
    store = store_of(12.0, 9.0)
    last = set(token_arrays(store)[0].at[1:] - 1)
    ends = lambda share: sum(int(token) in last for step in range(40) for token in source(store, end_share=share)(step)["semantic"][:, -1])  # noqa: E731
    assert ends(1.0) == 120 and 25 < ends(0.4) < 75 and ends(0.0) < 5
    for step in range(3):
        np.testing.assert_array_equal(source(store, end_share=0.0)(step)["semantic"], source(store)(step)["semantic"])


def test_rows_of_a_batch_are_those_of_the_whole_batch():
    store = store_of(5.0, 7.0)
    some = source(store, batch_size=7)(4, lambda size: np.arange(size)[2:5])
    whole = source(store, batch_size=7)(4)
    for name, tokens in whole.items():
        np.testing.assert_array_equal(some[name], tokens[2:5])


def test_clips_that_are_too_short_are_left_out_or_refused():
    store = store_of(1.0, 3.0)
    assert (source(store)(0)["semantic"] >= 25).all()
    assert long_enough(store, 2.0, AudioSpec()).tolist() == [False, True] and long_enough(store, 1.0, AudioSpec()).all()
    assert long_enough(store_of(1.97), 2.0, AudioSpec()).all() and not long_enough(store_of(1.96), 2.0, AudioSpec()).any()  # 50 tokens and 49.
    assert long_enough(store_of(1.97), 2.0, AudioSpec(semantic_rate_hz=25)).all() and not long_enough(store_of(1.97), 2.0, AudioSpec(semantic_rate_hz=50)).any()
    with pytest.raises(UserError, match=r"no train clip is as long as a crop of 5 s \(the longest: 3 s\)"):
        source(store, crop_sec=5.0)
    with pytest.raises(UserError, match="no test clip"):
        source(store, split="test")


def test_a_file_of_other_clips_is_refused(tmp_path):
    clips = clip_store(24_000, 48_000)
    np.save(tmp_path / "acoustic.npy", np.zeros((150, 3), np.int16))
    opened = TokenArray.open(tmp_path / "acoustic.npy", clips, rate_hz=50, spec=AUDIO)
    assert opened.codes.shape == (150, 3) and list(opened.at) == [0, 50, 150]
    np.save(tmp_path / "acoustic.npy", np.zeros((149, 3), np.int16))
    with pytest.raises(UserError, match="acoustic.npy has 149 tokens where the clips have 150: .* run the step that makes it again"):
        TokenArray.open(tmp_path / "acoustic.npy", clips, rate_hz=50, spec=AUDIO)


@pytest.mark.parametrize("rows", [1, 7, 60, 10_000])
def test_chunks_are_the_codes_of_a_split_end_to_end(rows):
    store = store_of(3.0, 1.0, 2.0)
    splits = ("train", "test", "train")
    store = dataclasses.replace(store, clips=tuple(dataclasses.replace(clip, split=split) for clip, split in zip(store.clips, splits, strict=True)))
    for array, ratio in zip(token_arrays(store), (1, 2)):
        codes = array.codes.reshape(len(array.codes), -1)
        whole = np.concatenate([codes[: 75 * ratio], codes[100 * ratio :]])
        chunks = list(array.chunks(store, "train", rows=rows))
        np.testing.assert_array_equal(np.concatenate(chunks), whole)
        assert max(map(len, chunks)) <= rows
        np.testing.assert_array_equal(np.concatenate(list(array.chunks(store, "test", rows=rows))), codes[75 * ratio : 100 * ratio])
    levels = list(token_arrays(store)[1].chunks(store, "train", levels=slice(1, 3), rows=rows))
    assert {chunk.shape[1] for chunk in levels} == {2}
