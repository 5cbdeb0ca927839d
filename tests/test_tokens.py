import jax
import numpy as np
import pytest
from small_streams import STAGES, make_streams, stage_layout

from musiclm_jax.errors import UserError
from musiclm_jax.specs import AudioSpec, Stream
from musiclm_jax.tokens import ABSENT, Levels, Segment, StageLayout, make_layout

PAPER = make_streams(mulan=(12, 1024), semantic=1024, acoustic=(12, 1024))


def streams(seconds=0.2, batch=2, seed=0):
    rng = np.random.default_rng(seed)
    t = AudioSpec().semantic_tokens(seconds)
    return {
        "mulan": rng.integers(5, size=(batch, 3)),
        "semantic": rng.integers(7, size=(batch, t)),
        "acoustic": rng.integers(11, size=(batch, 2 * t, 5)),
    }


@pytest.mark.parametrize("fine_sees_mulan", [False, True])
@pytest.mark.parametrize("name", STAGES)
def test_ids_are_in_disjoint_ranges(name, fine_sees_mulan):
    layout = stage_layout(name, fine_sees_mulan=fine_sees_mulan)
    batch = streams()
    layout.check(batch)
    seen = {}
    for index, segment in enumerate(layout.segments):
        codes = segment.take(batch)
        ids = layout.to_ids(index, codes)
        for level in range(segment.levels):  # row-major: time, then level
            of_level = np.asarray(ids)[:, level :: segment.levels]
            np.testing.assert_array_equal(of_level, np.asarray(codes)[:, :, level] + layout.offsets[index] + level * segment.codes)
            low = layout.offsets[index] + level * segment.codes
            for id_ in range(low, low + segment.codes):
                assert seen.setdefault(id_, (index, level)) == (index, level)
    assert sorted(seen) == list(range(layout.vocab_size))
    assert layout.mask_id == layout.vocab_size


def test_the_three_sequences():
    batch = streams()
    semantic, coarse, fine = (stage_layout(name) for name in STAGES)
    np.testing.assert_array_equal(semantic.prefix_ids(batch), batch["mulan"] + [0, 5, 10])
    np.testing.assert_array_equal(coarse.prefix_ids(batch)[:, 3:], batch["semantic"] + 15)
    np.testing.assert_array_equal(fine.prefix_ids(batch), (batch["acoustic"][..., :2] + [0, 11]).reshape(2, -1))
    np.testing.assert_array_equal(coarse.target_codes(batch), batch["acoustic"][..., :2])
    np.testing.assert_array_equal(fine.target_codes(batch), batch["acoustic"][..., 2:])
    assert fine.target_offset == 22 and coarse.target_offset == 22 and semantic.target_offset == 15


def test_paper_lengths_and_vocabularies():
    layouts = [stage_layout(name, PAPER, coarse_levels=4) for name in STAGES]
    assert [layout.num_tokens(seconds) for layout, seconds in zip(layouts, (30, 10, 3))] == [762, 2262, 1800]
    assert [layout.num_target_tokens(seconds) for layout, seconds in zip(layouts, (30, 10, 3))] == [750, 2000, 1200]
    assert [layout.vocab_size for layout in layouts] == [13 * 1024, 17 * 1024, 12 * 1024]


@pytest.mark.parametrize("seconds", [0.04, 0.1, 1.23, 3.0, 29.97])
def test_two_frames_per_semantic_token(seconds):
    audio = AudioSpec()
    layout = stage_layout("coarse", PAPER, coarse_levels=4)
    semantic, acoustic = layout.prefix[1], layout.target
    whole = audio.semantic_tokens(seconds) / 25
    assert acoustic.steps(whole) == 2 * semantic.steps(whole) == audio.frames(seconds)
    assert [frame // 2 for frame in range(acoustic.steps(whole))] == [s for s in range(semantic.steps(whole)) for _ in range(2)]


def test_bad_batches_are_named():
    batch = streams()
    layout = stage_layout("coarse")
    with pytest.raises(UserError, match="semantic has codes from .* to 9.*0 to 6"):
        layout.check({**batch, "semantic": batch["semantic"] * 0 + 9})
    with pytest.raises(UserError, match="differ in length"):
        layout.check({**batch, "semantic": batch["semantic"][:, 1:]})
    with pytest.raises(ValueError, match="levels 0 to 1"):
        layout.target_codes({"acoustic": batch["acoustic"][..., :1]})
    with pytest.raises(ValueError, match="the stream 'mulan'"):
        layout.prefix_ids({"semantic": batch["semantic"]})
    melody = StageLayout("melody", (Segment("melody", 4, 3, num_steps=2),), Segment("semantic", 1, 7, 25))
    with pytest.raises(UserError, match="melody has 3 steps, the melody stage expects 2"):
        melody.check({"melody": np.zeros((2, 3, 4), np.int32), "semantic": batch["semantic"]})


def test_levels_that_are_not_there_are_named():
    streams = make_streams()
    for prefix, target, says in [
        ((Levels("tempo"),), Levels("semantic"), "stage 'toy': no part writes the stream 'tempo': choose one of mulan, semantic, acoustic"),
        ((), Levels("acoustic", 2, 6), "levels 2 to 6 of 'acoustic', which has 5"),
        ((), Levels("acoustic", 3, 3), "levels 3 to 3"),
        ((), Levels("mulan"), "'mulan', which has no rate"),
    ]:
        with pytest.raises(UserError, match=says):
            make_layout("toy", prefix, target, streams)


def test_a_stage_without_conditions_begins_with_the_mask():
    layout = make_layout("toy", (), Levels("semantic"), make_streams())
    batch = streams()
    np.testing.assert_array_equal(layout.prefix_ids(batch), [[7], [7]])
    np.testing.assert_array_equal(layout.prefix_ids({}, batch=3), [[7]] * 3)
    assert layout.num_tokens(0.2) == 1 + 5 and [len(each) for each in layout.positions(5)] == [6] * 3


def test_ids_are_of_the_kind_of_the_codes():
    layout, batch = stage_layout("coarse"), streams()
    on_host = layout.prefix_ids(batch)
    assert isinstance(on_host, np.ndarray) and on_host.dtype == np.int32
    on_device = jax.jit(layout.prefix_ids)(batch)
    assert on_device.dtype == np.int32
    np.testing.assert_array_equal(on_host, on_device)


def test_a_stream_without_time_may_have_several_steps():
    """A melody is 3 embeddings of several levels; each level has its own block of ids, the same for all steps."""
    melody = make_layout("melody", (Levels("melody"),), Levels("semantic"), {**make_streams(), "melody": Stream("melody", 4, 3, steps=2)})
    ids = melody.prefix_ids({"melody": np.array([[[2, 1, 0, 2], [0, 0, 0, 1]]])})
    np.testing.assert_array_equal(ids, [[2, 4, 6, 11, 0, 3, 6, 10]])
    assert melody.num_tokens(0.2) == 2 * 4 + 5
    segments, times, levels = melody.positions(5)
    assert times.tolist() == [-1] * 8 + [0, 1, 2, 3, 4] and levels.tolist() == [0, 1, 2, 3] * 2 + [0] * 5 and segments.tolist() == [0] * 8 + [1] * 5


def test_rates_come_from_the_streams():
    """A codec of 75 frames per second has three for each semantic token, in positions as in lengths."""
    layout = stage_layout("coarse", make_streams(frame_rate_hz=75))
    assert layout.num_tokens(0.2) == 3 + 5 + 15 * 2
    _, times, _ = layout.positions(6)
    assert times.tolist() == [-1] * 3 + [0, 3] + [t for t in range(6) for _ in range(2)]


def test_what_sounds_together_has_the_same_time():
    segments, times, levels = stage_layout("coarse").positions(4)  # 3 MuLan, 2 semantic, 4 frames of 2 levels
    assert segments.tolist() == [0] * 3 + [1] * 2 + [2] * 8
    assert times.tolist() == [-1, -1, -1, 0, 2, 0, 0, 1, 1, 2, 2, 3, 3]
    assert levels.tolist() == [0, 1, 2, 0, 0, 0, 1, 0, 1, 0, 1, 0, 1]
    segments, times, levels = stage_layout("fine").positions(2)  # 2 frames of 2 levels, then 2 of 3
    assert segments.tolist() == [0] * 4 + [1] * 6
    assert times.tolist() == [0, 0, 1, 1, 0, 0, 0, 1, 1, 1]
    assert levels.tolist() == [0, 1, 0, 1, 0, 1, 2, 0, 1, 2]


def test_codes_that_are_absent_have_the_mask_id():
    codes = np.array([[[2, 1], [ABSENT, ABSENT]], [[ABSENT, ABSENT], [0, 2]]], np.int32)
    semantic = np.zeros((2, 5), np.int32)
    melodies = [Stream("melody", 2, 3, steps=2, optional=optional) for optional in (True, False)]
    layouts = [make_layout("toy", (Levels("mulan"), Levels("melody")), Levels("semantic"), {**make_streams(), "melody": melody}) for melody in melodies]
    streams = {"mulan": np.zeros((2, 3), np.int32), "melody": codes, "semantic": semantic}
    mask, melody = layouts[0].mask_id, 3 * 5
    assert mask == 3 * 5 + 2 * 3 + 7
    expected = [[melody + 2, melody + 3 + 1, mask, mask], [mask, mask, melody, melody + 3 + 2]]
    for ids in (layouts[0].prefix_ids(streams), jax.jit(layouts[0].prefix_ids)(streams)):
        np.testing.assert_array_equal(ids[:, 3:], expected)
    layouts[0].check(streams)
    with pytest.raises(UserError, match="melody has codes from -1"):
        layouts[1].check(streams)
    with pytest.raises(UserError, match="melody has codes from -2"):
        layouts[0].check({**streams, "melody": codes * 2})
