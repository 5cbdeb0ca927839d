import dataclasses
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_streams import make_streams
from toy_decoder import ToyDecoder

from musiclm_jax.errors import UserError
from musiclm_jax.generation import stages
from musiclm_jax.generation.devices import Weights
from musiclm_jax.generation.sampler import SamplingConfig, sample_codes
from musiclm_jax.generation.stages import StageSpec, generate_stage, musiclm_stages, required_steps
from musiclm_jax.specs import Stream
from musiclm_jax.tokens import Levels

STREAMS = make_streams(semantic=97, acoustic=(5, 97))
# 6 tokens by 3; 12 frames by 8; 4 frames by 4.
WINDOWS = {"semantic": (0.24, 0.12), "coarse": (0.24, 0.16), "fine": (0.08, 0.08)}
SPECS = {
    spec.name: dataclasses.replace(spec, window_sec=WINDOWS[spec.name][0], hop_sec=WINDOWS[spec.name][1], prefix_dropout=0.1)
    for spec in musiclm_stages(coarse_levels=2)
}
NOTHING = Weights(())


class Hash(ToyDecoder):
    """The next code is a hash of everything in the cache: it differs when any id or position does."""

    def logits(self, params, ids, cache, level):
        weights = jnp.arange(cache.shape[1]) * 7919 % 83 + 1
        code = ((jnp.maximum(cache, 0) * weights).sum(-1) + 31 * level) % self.layout.target.codes
        return 3.0 * jax.nn.one_hot(code, self.layout.target.codes)


def decoder(name):
    return Hash(SPECS[name].layout(STREAMS))


def keys(n=2):
    return np.asarray(jax.random.key_data(jax.random.split(jax.random.key(0), n)))


def run(name, streams, *, steps, spec=None, number=2, **options):
    return generate_stage(spec or SPECS[name], decoder(name), NOTHING, streams, steps=steps, keys=options.pop("keys", keys(number)), **options)


def draw_codes(seed, *shape):
    return np.random.default_rng(seed).integers(97, size=shape, dtype=np.int32)


MULAN = np.array([[0, 3, 2], [4, 1, 0]], np.int32)


@pytest.mark.parametrize("steps,expected", [(1, [0]), (6, [0]), (7, [0, 3]), (9, [0, 3]), (10, [0, 3, 6]), (30, [*range(0, 25, 3)])])
def test_windows_are_placed_from_the_start(steps, expected):
    assert SPECS["semantic"].windows(decoder("semantic").layout, steps) == (expected, 6)


def reference(name, conditions, steps, window, hop, keys, sampling):
    """SPEC's loop, written out: each window repeats the end of the last one and adds the rest; the whole is cut."""
    stage, out, start = decoder(name), None, 0
    while out is None or out.shape[1] < steps:
        start = 0 if out is None else start + hop
        fold = lambda key, start=start: jax.random.fold_in(jax.random.fold_in(key, np.uint32(zlib.crc32(name.encode()))), start)  # noqa: E731
        window_keys = np.asarray(jax.random.key_data(jax.vmap(fold)(jax.random.wrap_key_data(keys))))
        prompt = None if out is None else out[:, start:]
        ids = stage.layout.prefix_ids(conditions(start))
        piece = sample_codes(stage, NOTHING, ids, num_steps=window, keys=window_keys, sampling=sampling, prompt=prompt)
        out = piece if out is None else np.concatenate([out[:, :start], piece], axis=1)  # the prompt comes back as it went in
    return out[:, :steps]


@pytest.mark.parametrize("steps", [4, 6, 12, 13, 30])  # below, 1x, 2x, odd, 5x the window
def test_windows_continue_each_other(steps):
    out = run("semantic", {"mulan": MULAN}, steps=steps)
    assert out.shape == (2, steps, 1) and isinstance(out, np.ndarray)
    np.testing.assert_array_equal(out, reference("semantic", lambda start: {"mulan": MULAN}, steps, 6, 3, keys(), SamplingConfig()))


@pytest.mark.parametrize("steps", [4, 6, 13, 30])
def test_conditions_with_time_are_cut_to_the_window(steps):
    semantic = draw_codes(5, 2, 40)
    out = run("coarse", {"mulan": MULAN, "semantic": semantic}, steps=2 * steps)
    conditions = lambda start: {"mulan": MULAN, "semantic": semantic[:, start // 2 : start // 2 + 6]}  # noqa: E731
    np.testing.assert_array_equal(out, reference("coarse", conditions, 2 * steps, 12, 8, keys(), SamplingConfig(0.95)))


@pytest.mark.parametrize("name", ["semantic", "coarse", "fine"])
def test_a_short_clip_is_the_beginning_of_a_long_one(name):
    streams = {"mulan": MULAN, "semantic": draw_codes(5, 2, 40), "acoustic": draw_codes(6, 2, 80, 2)}
    whole = run(name, streams, steps=31, sampling=SamplingConfig(5.0))
    for steps in range(1, 31):
        np.testing.assert_array_equal(run(name, streams, steps=steps, sampling=SamplingConfig(5.0)), whole[:, :steps])


@pytest.mark.parametrize("steps,known", [(4, 1), (6, 3), (13, 2), (13, 6), (13, 8), (13, 10)])
def test_a_prompt_is_continued(steps, known):
    whole = run("semantic", {"mulan": MULAN}, steps=steps)
    np.testing.assert_array_equal(run("semantic", {"mulan": MULAN}, steps=steps, prompt=whole[:, :known]), whole)
    other = run("semantic", {"mulan": MULAN}, steps=steps, prompt=(whole[:, :known] + 1) % 97)
    np.testing.assert_array_equal(other[:, :known], (whole[:, :known] + 1) % 97)
    assert (other[:, known:] != whole[:, known:]).any()


@pytest.mark.parametrize("guidance", [1.0, 2.0])
@pytest.mark.parametrize("steps,known", [(6, 0), (6, 3), (13, 8)])
def test_what_several_rows_continue_is_read_once(steps, known, guidance):
    prompt = draw_codes(5, 2, known, 1) if known else None
    options = {"steps": steps, "number": 6, "sampling": SamplingConfig(2.0, guidance=guidance)}
    once = run("semantic", {"mulan": MULAN}, prompt=prompt, **options)
    each = run("semantic", {"mulan": np.repeat(MULAN, 3, axis=0)}, prompt=None if prompt is None else np.repeat(prompt, 3, axis=0), **options)
    np.testing.assert_array_equal(once, each)


@pytest.mark.parametrize("steps,max_windows", [(2, 32), (4, 32), (8, 32), (10, 32), (20, 32), (20, 3)])
def test_windows_that_do_not_overlap_are_drawn_together(steps, max_windows):
    coarse, spec = draw_codes(5, 2, 20, 2), dataclasses.replace(SPECS["fine"], max_windows=max_windows)
    draw = lambda coarse: run("fine", {"acoustic": coarse}, steps=steps, spec=spec)  # noqa: E731
    out = draw(coarse)
    assert out.shape == (2, steps, 3)
    if steps > 4:  # A change in the second window leaves the others.
        coarse = coarse.copy()
        coarse[:, 5] += 1
        changed = draw(coarse)
        np.testing.assert_array_equal(np.delete(changed, range(4, 8), axis=1), np.delete(out, range(4, 8), axis=1))
        assert (changed[:, 4:8] != out[:, 4:8]).any()


def test_stages_draw_independently_and_clips_stand_alone():
    both = run("semantic", {"mulan": MULAN}, steps=13, sampling=SamplingConfig(5.0))
    second = run("semantic", {"mulan": MULAN[1:]}, steps=13, keys=keys()[1:], sampling=SamplingConfig(5.0))
    np.testing.assert_array_equal(both[1:], second)
    folded = [stages.window_keys(keys(), name, start) for name in ("semantic", "coarse", "fine") for start in (0, 3)]
    assert len(np.unique(np.concatenate(folded), axis=0)) == 12


def test_another_length_compiles_nothing():
    streams = {"mulan": MULAN, "semantic": draw_codes(5, 2, 40), "acoustic": draw_codes(6, 2, 80, 2)}
    names = ("semantic", "coarse", "fine")
    for name in names:
        run(name, streams, steps=30)
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(lambda event, *_, **__: compiled.append(event) if "backend_compile" in event else None)
    for name in names:
        run(name, streams, steps=25 if name != "fine" else 29)
    assert compiled == []
    run("semantic", {"mulan": MULAN}, steps=25, spec=dataclasses.replace(SPECS["semantic"], window_sec=0.28))
    assert compiled  # Another window does.


def test_progress_counts_every_new_token_once():
    calls = []
    run("semantic", {"mulan": MULAN}, steps=13, on_progress=lambda *a: calls.append(a))
    assert [done for done, _ in calls] == [1, 6, 7, 9, 10, 12, 13] and {total for _, total in calls} == {13}


# ---------------------------------------------------------------------------------------------------------------------- Specs


def test_each_stage_writes_what_the_next_one_reads():
    specs = musiclm_stages()
    paper = make_streams(mulan=(12, 1024), semantic=1024, acoustic=(12, 1024))
    pairs = [(spec, spec.layout(paper)) for spec in specs]
    # 10 s: four fine windows reach 12 s, two coarse ones 17 s.
    assert required_steps(pairs, seconds=10) == {"semantic": 425, "coarse": 600, "fine": 500}
    assert required_steps(pairs, seconds=30) == {"semantic": 775, "coarse": 1500, "fine": 1500}
    assert required_steps(pairs[:2], seconds=10) == {"semantic": 250, "coarse": 500}
    assert required_steps(pairs[:1], seconds=0.03) == {"semantic": 1}


def test_the_paper_stages():
    paper = make_streams(mulan=(12, 1024), semantic=1024, acoustic=(12, 1024))
    semantic, coarse, fine = (spec.layout(paper) for spec in musiclm_stages())
    assert [segment.stream for segment in coarse.segments] == ["mulan", "semantic", "acoustic"]
    assert (coarse.target.levels, fine.target.first_level, fine.target.levels) == (4, 4, 8)
    assert [segment.stream for segment in fine.prefix] == ["acoustic"]
    assert [segment.stream for segment in musiclm_stages(fine_sees_mulan=True)[2].layout(paper).prefix] == ["mulan", "acoustic"]
    assert semantic.vocab_size == 13 * 1024


def test_a_stage_without_conditions_is_audiolm():
    spec = StageSpec("semantic", Levels("semantic"), window_sec=0.24, hop_sec=0.12)
    out = generate_stage(spec, Hash(spec.layout(STREAMS)), NOTHING, {}, steps=13, keys=keys(3), sampling=SamplingConfig(5.0))
    assert out.shape == (3, 13, 1) and len({row.tobytes() for row in out}) == 3


def test_a_melody_may_stand_before_the_mulan_tokens():
    streams = {**STREAMS, "melody": Stream("melody", 2, 13, steps=3)}
    spec = StageSpec("semantic", Levels("semantic"), (Levels("melody"), Levels("mulan")), window_sec=0.24, hop_sec=0.12)
    stage = Hash(spec.layout(streams))
    given = {"mulan": MULAN, "melody": draw_codes(1, 2, 3, 2) % 13}
    draw = lambda melody: generate_stage(spec, stage, NOTHING, {**given, "melody": melody}, steps=7, keys=keys())  # noqa: E731
    assert (draw(given["melody"]) != draw((given["melody"] + 1) % 13)).any()


@pytest.mark.parametrize(
    "changes,says",
    [
        ({"hop_sec": 11.0}, "hop_sec=11.0, window_sec=10.0"),
        ({"hop_sec": 0}, "hop_sec=0"),
        ({"max_windows": 0}, "max_windows=0"),
        ({"name": "../x"}, "stage '../x'"),
        ({"prefix_dropout": 1.0}, "prefix_dropout=1.0"),
        ({"sampling": SamplingConfig(guidance=2.0)}, "guidance=2 of the coarse stage: it was trained without dropping conditions"),
    ],
)
def test_nonsense_is_refused(changes, says):
    with pytest.raises(UserError, match=says):
        dataclasses.replace(musiclm_stages()[1], **changes)


def test_guidance_is_refused_where_no_conditions_were_withheld():
    with pytest.raises(UserError, match="trained without dropping conditions"):
        run("semantic", {"mulan": MULAN}, steps=3, spec=dataclasses.replace(SPECS["semantic"], prefix_dropout=0.0), sampling=SamplingConfig(guidance=1.5))


def test_a_window_is_a_whole_number_of_steps_of_each_stream():
    with pytest.raises(UserError, match="window_sec=3.02 is 75.5 steps of 'semantic'"):
        dataclasses.replace(musiclm_stages(coarse_levels=2)[1], window_sec=3.02, hop_sec=2.0).layout(STREAMS)


def test_conditions_that_end_early_are_named():
    with pytest.raises(ValueError, match="'semantic' ends within the window of the coarse stage"):
        run("coarse", {"mulan": MULAN, "semantic": draw_codes(5, 2, 5)}, steps=10)
