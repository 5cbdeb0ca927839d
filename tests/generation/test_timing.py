"""Pieces that end by themselves: the timing tokens of each window, in training and in generation."""

import dataclasses

import numpy as np
import pytest
from tiny_musiclm import tiny_config, tiny_musiclm, tiny_stages, with_melody

from musiclm_jax.data.clips import Clip, ClipStore
from musiclm_jax.errors import UserError
from musiclm_jax.generation import tracks
from musiclm_jax.generation.request import clip_keys
from musiclm_jax.generation.timing import TimingConfig, given_timing
from musiclm_jax.generation.tracks import StageTrack
from musiclm_jax.musiclm import MusicLM
from musiclm_jax.parts.timing import Place, TimingTokens, places
from musiclm_jax.tokens import ABSENT, Levels

PROMPT = "a calm piano melody"


def with_timing(*readers: str, base=None, stretch: float = 1):
    """A config whose stages `readers` read the timing first. stretch: of all windows."""
    base = base or tiny_config()
    reads = lambda spec: (Levels("timing"), *spec.prefix) if spec.name in readers else spec.prefix  # noqa: E731
    long = lambda spec: {"window_sec": stretch * spec.window_sec, "hop_sec": stretch * spec.hop_sec}  # noqa: E731
    stages = tuple(dataclasses.replace(spec, prefix=reads(spec), **long(spec)) for spec in base.stages)
    return dataclasses.replace(base, timing=TimingConfig(num_codes=19), stages=stages)


@pytest.fixture
def scripted(monkeypatch):
    """Stages that draw nothing but code 0."""
    zeros = lambda decoder, weights, prefix, *, num_steps, keys, until=None, **_: np.zeros((len(keys), until or num_steps, decoder.layout.target.levels), int)  # noqa: E731
    monkeypatch.setattr(tracks, "sample_codes", zeros)


def windows(model, monkeypatch, **request) -> dict[str, list]:
    """Of each stage, (first step, step after the last) of its windows that are drawn alone, with the timing that it was given."""
    found, draw = {}, StageTrack.draw

    def spy(self, streams, **options):
        given = streams["timing"][0].tolist() if self.spec.reads("timing") else None
        found.setdefault(self.spec.name, []).append((*self.next_window(), given))
        return draw(self, streams, **options)

    with monkeypatch.context() as patch:
        patch.setattr(StageTrack, "draw", spy)
        list(model.stream(PROMPT, **request))
    return found


# ---------------------------------------------------------------------------------------------------------------------- Tokens


def test_a_token_is_the_nearest_second():
    config = TimingConfig(num_codes=100)
    assert config.stream.levels == 2 and config.stream.steps == 1 and config.stream.optional
    assert config.tokens(0.0, 30.0).tolist() == [0, 30]
    assert config.tokens(12.4, 29.7).tolist() == [12, 30]
    assert config.tokens(500.0, 501.0).tolist() == [99, 99] and config.tokens(7.0, None).tolist() == [7, ABSENT]


def test_embeddings_of_near_seconds_begin_alike():
    (start, total), similar = TimingConfig().codebooks, lambda a, b: float(a @ b) / 7
    np.testing.assert_array_equal(start, total)
    assert similar(start[20], start[21]) > 0.9 > similar(start[20], start[25]) > similar(start[20], start[60])
    assert len(np.unique(start.round(6), axis=0)) == 512


def store(*clips: tuple[str, float]) -> ClipStore:
    rows = tuple(Clip(name, 0, round(seconds * 24_000), (), "train", {}) for name, seconds in clips)
    return ClipStore(np.zeros(0, np.int16), rows, 24_000)


def test_a_clip_is_a_piece_unless_it_is_a_part_of_a_file():
    whole = store(("a.wav", 12.5), ("b.wav[0-10]", 10.0), ("b.wav[10-20]", 10.0), ("b.wav[20-]", 4.5), ("c.wav[5-15.5]", 10.5), ("[1-2].wav", 3.0))
    assert places(whole) == (*(Place(0.0, 12.5), Place(0.0, 24.5), Place(10.0, 24.5), Place(20.0, 24.5), Place(5.0, None), Place(0.0, 3.0)),)


def test_crops_say_where_they_lie_in_their_piece():
    tokens = TimingTokens(TimingConfig(), places(store(("a.wav", 30.0), ("b.wav[10-20]", 10.0), ("b.wav[20-]", 4.5))))
    crops = lambda rows: tokens.crops([0, 1, 2, 0], [20.0, 3.1, 1.0, 0.0], 2.0, rows=rows, rng=np.random.default_rng(0), text_share=0.0)  # noqa: E731
    assert crops(np.arange(4)).tolist() == [[20, 30], [13, 24], [21, 24], [0, 30]] and crops(np.arange(4)).dtype == np.int32
    np.testing.assert_array_equal(crops(np.array([2, 0])), crops(np.arange(4))[[2, 0]])


# ---------------------------------------------------------------------------------------------------------------------- Generation


def test_each_window_is_told_where_it_is(scripted, monkeypatch):
    model = tiny_musiclm(with_timing("semantic", "coarse", stretch=10))  # Windows of 4 s each 2 s, and of 2 s each 1.2 s.
    found = windows(model, monkeypatch, seconds=7, ending=True)
    assert [each for *_, each in found["semantic"]][:3] == [[0, 7], [2, 7], [3, 7]]
    assert [each for *_, each in found["coarse"]][:6] == [[0, 7], [1, 7], [2, 7], [4, 7], [5, 7], [5, 7]]
    # Without an ending, nothing is said, and the last windows go on.
    assert [each for *_, each in windows(model, monkeypatch, seconds=7)["semantic"]] == 3 * [[ABSENT, ABSENT]]


def test_the_last_windows_end_with_the_piece(scripted, monkeypatch):
    model = tiny_musiclm(with_timing("semantic"))
    ends, goes_on = (windows(model, monkeypatch, seconds=0.7, ending=ending) for ending in (True, False))
    # 18 semantic tokens and 36 frames. The fine stage asks for more of the coarse one, which nobody hears.
    assert [each[:2] for each in goes_on["semantic"]] == [(0, 10), (5, 15), (10, 20)]
    assert [each[:2] for each in ends["semantic"]][:3] == [(0, 10), (5, 15), (8, 18)]
    assert [each[:2] for each in goes_on["coarse"]][4:] == [(24, 34), (30, 40)] and [each[:2] for each in ends["coarse"]][4:6] == [(24, 34), (26, 36)]


def test_timing_and_melody_go_together(scripted, monkeypatch):
    model = tiny_musiclm(with_timing("semantic", base=with_melody("semantic")))
    tune = np.sin(np.arange(24_000) * 0.1).astype(np.float32)
    assert windows(model, monkeypatch, seconds=1.6, ending=True, melody=tune)["semantic"][0][2] == [0, 2]


def test_lengths_are_kept_and_needed(scripted):
    model = tiny_musiclm(with_timing("semantic"))
    assert model.generate([PROMPT], seconds=0.66, ending=True).wave.shape == (1, 15_840)
    with pytest.raises(UserError, match="an ending needs a length: give seconds"):
        model.stream(PROMPT, ending=True)
    assert next(iter(model.stream(PROMPT))).shape[0] == 1


def test_a_stage_heeds_the_timing():
    model = tiny_musiclm(with_timing("semantic"))
    model.variables("semantic")["params"]["head"] = 30 * model.variables("semantic")["params"]["head"]
    mulan, stage = np.zeros((1, 2), np.int32), model.config.stage("semantic")
    draw = lambda *timing: model.draw_stage(stage, {"mulan": mulan, "timing": np.array([timing])}, steps=10, keys=clip_keys(["a"], seed=0))  # noqa: E731
    drawn = [draw(*timing) for timing in ((0, 18), (ABSENT, ABSENT), (0, 18))]
    np.testing.assert_array_equal(drawn[0], drawn[2])
    assert not np.array_equal(drawn[0], drawn[1])


def test_each_token_has_ids_of_its_own():
    layout = with_timing("semantic").layout("semantic")
    ids = [layout.prefix_ids({"mulan": np.zeros((1, 2), int), "timing": np.array([timing])})[0, :2].tolist() for timing in ((3, 7), (7, 3), (7, ABSENT))]
    assert ids == [[3, 19 + 7], [7, 19 + 3], [7, layout.mask_id]]


@pytest.mark.parametrize("config", [tiny_config(), with_timing()])
def test_a_model_that_cannot_end_says_which_would_do(config):
    with pytest.raises(UserError, match=r"cannot end its music: choose a bundle for which `musiclm info` lists timing.*with_timing\.gin"):
        tiny_musiclm(config).generate([PROMPT], seconds=0.4, ending=True)


def test_the_config_says_whether_there_is_timing(tmp_path):
    config = with_timing("semantic")
    config.check_timing()
    assert given_timing(None, ending=True, seconds=None) == {} and "timing" not in tiny_config().to_dict()
    assert config.streams["timing"].codes == 19 and config.models == tiny_config().models
    tiny_musiclm(config).save_pretrained(tmp_path / "bundle")
    assert MusicLM.from_pretrained(tmp_path / "bundle").config == config
    with pytest.raises(UserError, match="no part writes the stream 'timing'"):
        dataclasses.replace(config, timing=None)
    assert tiny_stages() == tiny_config().stages
