"""Windows over clips, windows under crops, and the batches of the stages."""

import dataclasses

import numpy as np
import pytest

from musiclm_jax.data.clips import Clip, ClipStore
from musiclm_jax.data.token_store import TokenStore, covering_windows, pieces, token_source, wave_batches
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


def token_store(*seconds, split="train"):
    store = clip_store(*(round(s * 24_000) for s in seconds), split=split)
    tokens = [AUDIO.semantic_tokens(s) for s in seconds]
    at = np.concatenate([[0], np.cumsum(tokens)])
    windows = np.array([max(0, int(s) - 10) + 1 for s in seconds])
    windows_at = np.concatenate([[0], np.cumsum(windows)])
    semantic = np.arange(at[-1], dtype=np.int16)
    acoustic = np.stack([np.arange(2 * at[-1])] * 3, axis=1).astype(np.int16)
    embeddings = np.repeat(np.arange(windows_at[-1], dtype=np.float16)[:, None], 5, axis=1)
    texts = 100 + np.stack([np.arange(2 * len(seconds))] * 2, axis=1).astype(np.int16)
    return TokenStore(store.clips, AUDIO, semantic, acoustic, embeddings, texts, at, windows_at, np.arange(len(seconds) + 1) * 2)


def source(store, **changes):
    arguments = {"streams": ("mulan", "semantic", "acoustic"), "split": "train", "crop_sec": 2.0, "batch_size": 3, "seed": 1}
    arguments |= {"window_sec": 10.0, "hop_sec": 1.0, "mulan_tokens": lambda x: np.rint(x[:, :2]).astype(int)}
    return token_source(store, **(arguments | changes))


def test_streams_of_a_crop_line_up_and_depend_on_the_step_only():
    store = token_store(12.0, 3.0, 11.5)
    draws = source(store)
    seen = set()
    for step in range(20):
        batch, again = draws(step), draws(step)
        assert batch["semantic"].shape == (3, 50) and batch["acoustic"].shape == (3, 100, 3) and batch["mulan"].shape == (3, 2)
        np.testing.assert_array_equal(batch["acoustic"][:, ::2, 0], 2 * batch["semantic"])
        for name in batch:
            assert batch[name].dtype == np.int32
            np.testing.assert_array_equal(batch[name], again[name])
        clip = np.searchsorted(store.semantic_at, batch["semantic"][:, 0], side="right") - 1
        assert sorted(clip) == [0, 1, 2]  # Three clips, a batch of three: each once.
        assert (batch["semantic"][:, -1] < store.semantic_at[clip + 1]).all()
        window = batch["mulan"][:, 0]
        assert (store.windows_at[clip] <= window).all() and (window < store.windows_at[clip + 1]).all()
        seen |= set(batch["semantic"][:, 0])
    assert len(seen) > 20


def test_text_tokens_take_their_share():
    store = token_store(3.0, 3.0)
    share = np.mean([source(store, text_share=0.3)(step)["mulan"][:, 0] >= 100 for step in range(300)])
    assert share == pytest.approx(0.3, abs=0.06)
    batch = source(store, text_share=1.0, streams=("mulan", "semantic"))(0)
    clip = np.searchsorted(store.semantic_at, batch["semantic"][:, 0], side="right") - 1
    assert ((batch["mulan"][:, 0] - 100) // 2 == clip).all() and "acoustic" not in batch


def test_clips_that_are_too_short_are_left_out_or_refused():
    store = token_store(1.0, 3.0)
    assert (source(store)(0)["semantic"] >= 25).all()
    assert store.holds(2.0).tolist() == [False, True] and store.holds(1.0).all()
    with pytest.raises(UserError, match=r"no train clip is as long as crop_sec=5 \(the longest: 3 s\)"):
        source(store, crop_sec=5.0)
    with pytest.raises(UserError, match="no test clip"):
        source(store, split="test")


def test_a_store_opens_what_a_stage_needs_and_refuses_files_of_other_clips(tmp_path):
    clips = clip_store(24_000, 48_000)
    arrays = {"semantic": np.zeros(75), "acoustic": np.zeros((150, 3)), "windows": np.zeros((2, 5)), "texts": np.zeros((4, 2))}
    for kind, array in arrays.items():
        np.save(tmp_path / f"{kind}.npy", array)
    files = {kind: tmp_path / f"{kind}.npy" for kind in arrays}
    opened = TokenStore.open(clips, audio=AUDIO, files=files, num_windows=lambda n: 1)
    assert opened.acoustic.shape == (150, 3) and list(opened.semantic_at) == [0, 25, 75]
    assert TokenStore.open(clips, audio=AUDIO, files={k: files[k] for k in ("windows", "texts")}, num_windows=lambda n: 1).semantic is None
    np.save(files["acoustic"], np.zeros((149, 3)))
    with pytest.raises(UserError, match="acoustic.npy has 149 rows, the clips have 150.*delete"):
        TokenStore.open(clips, audio=AUDIO, files=files, num_windows=lambda n: 1)


@pytest.mark.parametrize("rows", [1, 7, 60, 10_000])
def test_chunks_are_the_codes_of_a_split_end_to_end(rows):
    store = token_store(3.0, 1.0, 2.0)
    splits = ("train", "test", "train")
    store = dataclasses.replace(store, clips=tuple(dataclasses.replace(clip, split=split) for clip, split in zip(store.clips, splits, strict=True)))
    for stream, array, ratio in (("semantic", store.semantic[:, None], 1), ("acoustic", store.acoustic, 2)):
        whole = np.concatenate([array[: 75 * ratio], array[100 * ratio :]])
        chunks = list(store.chunks(stream, "train", rows=rows))
        np.testing.assert_array_equal(np.concatenate(chunks), whole)
        assert all(0 < len(chunk) <= rows for chunk in chunks) and chunks[0].dtype == np.int16
    some = np.concatenate(list(store.chunks("acoustic", "train", first_level=1, num_levels=2, rows=rows)))
    np.testing.assert_array_equal(some, whole[:, 1:3])
    assert list(store.chunks("semantic", "none", rows=rows)) == []
