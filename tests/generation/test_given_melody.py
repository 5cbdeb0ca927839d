"""A melody that the music follows: how it is read, its tokens in each window of a stage, and what a stage is given where there is none."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile
from tiny_musiclm import MELODY, tiny_config, tiny_musiclm, with_melody

from musiclm_jax.configs import MusicLMConfig
from musiclm_jax.errors import UserError
from musiclm_jax.generation.melody import no_melody, read_melody
from musiclm_jax.generation.request import clip_keys
from musiclm_jax.generation.selection import SelectionConfig
from musiclm_jax.generation.tracks import StageTrack
from musiclm_jax.models import melody, tokenizers
from musiclm_jax.musiclm import MusicLM
from musiclm_jax.tokens import ABSENT

WINDOW, HOP = MELODY.window_samples, MELODY.hop_samples


def with_codes(config: MusicLMConfig) -> MusicLM:
    """A model whose codes tell tones apart, and whose semantic stage heeds them."""
    model = tiny_musiclm(config)
    weights = {name: model.variables(name) for name in model.models}
    embeddings = melody.embed(MELODY, weights["melody"]["params"], jnp.stack([tone(pitch)[:WINDOW] for pitch in np.linspace(0.02, 1, 51)]))
    weights["melody"]["quantizer"] = melody.fit_quantizer(embeddings, rng=jax.random.key(0), config=MELODY, num_iters=5)
    weights["semantic"]["params"]["head"] = 30 * weights["semantic"]["params"]["head"]
    return MusicLM(config, weights, model.text)


def tone(pitch: float) -> np.ndarray:
    return np.sin(np.arange(24_000) * pitch).astype(np.float32)


@pytest.fixture(scope="module")
def model():
    return with_codes(with_melody("semantic", "coarse"))


@pytest.fixture
def counted(monkeypatch):
    """An embedder whose codes say where a window of the melody `ramp` begins: in hundredths of a second, to the base 17."""
    begins = lambda config, variables, waves: np.stack([np.divmod(np.round(wave[0] * 1000).astype(int), 17) for wave in waves])  # noqa: E731
    monkeypatch.setattr(tokenizers, "_melody_tokens", begins)


def ramp(seconds: float) -> np.ndarray:
    """Sample n says its time: seconds / 10."""
    return (np.arange(round(seconds * 24_000)) / 240_000).astype(np.float32)


def begins(codes: np.ndarray) -> list:
    """What the codes of `counted` say, in hundredths of a second. None: absent."""
    return [[None if (step == ABSENT).all() else int(17 * step[0] + step[1]) for step in window] for window in codes]


def conditions(model, monkeypatch, **request) -> dict[str, np.ndarray]:
    """The melody that each stage was given, [rows, S, W, Q] of its S windows."""
    given, draw = {}, StageTrack.draw

    def spy(self, streams, **options):
        if self.spec.reads("melody"):
            given.setdefault(self.spec.name, []).append(streams["melody"])
        return draw(self, streams, **options)

    with monkeypatch.context() as patch:
        patch.setattr(StageTrack, "draw", spy)
        model.generate(["a calm piano melody"], seconds=0.7, **request)
    # Once candidates are chosen, there are fewer rows.
    return {name: np.stack([rows for rows in each if len(rows) == len(each[0])], axis=1) for name, each in given.items()}


# ---------------------------------------------------------------------------------------------------------------------- Tokens of windows


def test_each_window_of_a_stage_has_the_tokens_of_its_seconds(model, counted, monkeypatch):
    given = conditions(model, monkeypatch, melody=ramp(2.0))
    # Windows of 0.4 s each 0.2 s, for the 0.8 s that the coarse stage reads; of 0.2 s each 0.12 s, into which one window fits.
    assert begins(given["semantic"][0]) == [[0, 12, 24], [20, 32, 44], [40, 52, 64]]
    assert begins(given["coarse"][0])[:3] == [[0, None, None], [12, None, None], [24, None, None]]


def test_where_the_melody_ends_its_tokens_are_absent(model, counted, monkeypatch):
    given = conditions(model, monkeypatch, melody=ramp(0.5))
    assert begins(given["semantic"][0]) == [[0, 12, 24], [20, 32, None], [None, None, None]]
    # One that is shorter than a window of the embedder is zero-padded to it.
    assert begins(conditions(model, monkeypatch, melody=ramp(0.05))["semantic"][0])[:2] == [[0, None, None], [None, None, None]]


def test_without_a_melody_all_is_absent(model, monkeypatch):
    given = conditions(model, monkeypatch, num_samples=2)
    assert {*given} == {"semantic", "coarse"} and all(each.shape[0] == 2 and each.shape[2:] == (3, 2) and (each == ABSENT).all() for each in given.values())


def test_all_candidates_and_drafts_have_the_melody(counted, monkeypatch):
    model = tiny_musiclm(with_melody("semantic", "coarse"), rerankers=True)
    model.config = dataclasses.replace(model.config, selection=SelectionConfig(num_candidates=2, num_drafts=3, draft_sec=0.3))
    given = conditions(model, monkeypatch, melody=ramp(2.0))
    assert given["coarse"].shape[0] == 2 and begins(given["coarse"][1])[1] == [12, None, None]


def test_a_stage_that_reads_none_has_as_many_windows_as_it_likes(counted):
    """The coarse stage has more windows than the semantic one, whose melody it does not read."""
    model = tiny_musiclm(with_melody("semantic"))
    assert model.generate(["a calm piano melody"], seconds=0.7, melody=ramp(2.0)).wave.shape == (1, 16_800)


def test_the_real_embedder_hears_the_wave(model):
    wave = np.concatenate([tone(pitch)[:HOP] for pitch in (0.02, 0.1, 0.3, 0.6, 1.0)])
    codes = model.melody.encode(wave, [0.0, 0.12], window_sec=0.4)
    np.testing.assert_array_equal(codes[0, 1:], codes[1, :2])
    for start, found in ((0, codes[0, 0]), (HOP, codes[0, 1])):
        alone = model.melody.encode(wave[start : start + WINDOW], [0.0], window_sec=0.16)
        np.testing.assert_array_equal(alone[0, 0], found)
        embedding = melody.embed(MELODY, model.variables("melody")["params"], jnp.asarray(wave[None, start : start + WINDOW]))
        np.testing.assert_array_equal(melody.tokens(MELODY, model.variables("melody"), embedding)[0], found)
    assert 0 <= codes.min() and codes.max() < 17 and len(np.unique(codes[0], axis=0)) == 3


def test_music_follows_what_it_is_given(model):
    keys, mulan, semantic = clip_keys(["a"], seed=0), np.zeros((1, 2), np.int32), model.config.stage("semantic")
    tunes = [model.melody.encode(tone(pitch), [0.0], window_sec=0.4) for pitch in (0.02, 0.6, 0.02)]
    drawn = [model.draw_stage(semantic, {"mulan": mulan, "melody": codes}, steps=10, keys=keys) for codes in (*tunes, no_melody(MELODY))]
    assert not np.array_equal(drawn[0], drawn[1]) and not np.array_equal(drawn[0], drawn[3])
    np.testing.assert_array_equal(drawn[0], drawn[2])


# ---------------------------------------------------------------------------------------------------------------------- Reading


def test_any_rate_and_any_number_of_channels(tmp_path):
    tone = lambda rate, seconds: np.sin(2 * np.pi * 440 * np.arange(round(rate * seconds)) / rate).astype(np.float32) / 2  # noqa: E731
    expected = tone(24_000, 0.5)
    soundfile.write(tmp_path / "a.wav", np.stack([tone(44_100, 9.0)] * 2, axis=1), 44_100, subtype="FLOAT")
    stereo = (np.stack([tone(48_000, 9.0), 0 * tone(48_000, 9.0)], axis=1), 48_000)
    for given, gain in ((tone(24_000, 9.0), 1), (tmp_path / "a.wav", 1), (str(tmp_path / "a.wav"), 1), (stereo, 0.5), ((tone(8000, 9.0), 8000), 1)):
        wave = read_melody(given, MELODY, seconds=0.5)
        assert wave.dtype == np.float32 and abs(len(wave) - 12_000) <= 1
        np.testing.assert_allclose(wave[200:-200], gain * expected[200 : len(wave) - 200], atol=0.01)


def test_no_more_is_read_than_is_needed(tmp_path, monkeypatch):
    read = []
    file = soundfile.SoundFile.read
    monkeypatch.setattr(soundfile.SoundFile, "read", lambda self, frames, **options: read.append(frames) or file(self, frames, **options))
    soundfile.write(tmp_path / "long.wav", np.tile(ramp(1.0), 60), 24_000)
    read_melody(tmp_path / "long.wav", MELODY, seconds=0.8)
    assert sum(read) == 19_200


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (np.zeros(24_000, np.float32), "the melody is silent"),
        (np.ones(100, np.float32), r"the melody of 0\.00 s is too short: at least 0\.02 s"),
        (np.full(24_000, np.nan, np.float32), "NaN"),
        (np.ones((2, 3, 4), np.float32), r"shape \[2, 3, 4\]"),
        ((np.ones(24_000, np.float32), 0), "at 0 Hz"),
    ],
)
def test_what_is_no_melody_is_refused(model, given, says):
    with pytest.raises(UserError, match=says):
        model.generate(["a calm piano melody"], seconds=0.2, melody=given)


def test_files_that_are_no_melody_are_named(model, tmp_path):
    soundfile.write(tmp_path / "silent.wav", np.zeros(24_000), 24_000)
    soundfile.write(tmp_path / "short.wav", np.ones(100) / 2, 24_000)
    for name, says in (("silent.wav", "is silent"), ("short.wav", "is too short"), ("none.wav", "no such file")):
        with pytest.raises(UserError, match=f"{name}: .*{says}"):
            model.generate(["a calm piano melody"], seconds=0.2, melody=tmp_path / name)


@pytest.mark.parametrize("config", [tiny_config(), with_melody()])
def test_a_model_that_follows_none_says_which_would_do(config):
    with pytest.raises(UserError, match=r"follows no melody: choose a bundle for which `musiclm info` lists melody.*with_melody\.gin"):
        tiny_musiclm(config).generate(["a calm piano melody"], seconds=0.2, melody=ramp(1.0))


# ---------------------------------------------------------------------------------------------------------------------- Bundles


def test_the_embedder_is_in_the_bundle(model, tmp_path):
    model.save_pretrained(tmp_path / "bundle")
    assert (tmp_path / "bundle" / "melody.safetensors").exists()
    again = MusicLM.from_pretrained(tmp_path / "bundle")
    assert again.config == model.config
    wave = np.random.default_rng(1).normal(size=24_000).astype(np.float32)
    np.testing.assert_array_equal(*(each.melody.encode(wave, [0.0, 0.3], window_sec=0.4) for each in (model, again)))


def test_a_bundle_without_it_has_the_config_of_before(tmp_path):
    tiny_musiclm().save_pretrained(tmp_path / "bundle")
    assert "melody" not in json.loads((tmp_path / "bundle" / "config.json").read_text())["model"]
    assert MusicLM.from_pretrained(tmp_path / "bundle").config.melody is None
