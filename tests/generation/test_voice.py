"""A voice that the music accompanies: its tokens in each window, the noise with which it is heard, and the mix."""

import dataclasses

import numpy as np
import pytest
from tiny_musiclm import tiny_config, tiny_musiclm

from musiclm_jax.audio.loudness import loudness_lufs
from musiclm_jax.errors import UserError
from musiclm_jax.generation import tracks
from musiclm_jax.generation.tracks import StageTrack
from musiclm_jax.generation.voice import GivenVoice, VoiceConfig, mix, read_voice
from musiclm_jax.musiclm import MusicLM
from musiclm_jax.tokens import ABSENT, Levels

PROMPT = "a calm piano melody"


def with_voice(*readers: str):
    reads = lambda spec: dataclasses.replace(spec, prefix=(Levels("voice"), *spec.prefix)) if spec.name in readers else spec  # noqa: E731
    return dataclasses.replace(tiny_config(), voice=VoiceConfig(), stages=tuple(map(reads, tiny_config().stages)))


def ramp(seconds: float) -> np.ndarray:
    """Semantic token n has the level 1 + n."""
    return np.repeat(1 + np.arange(round(25 * seconds)), 960).astype(np.float32)


def given(wave) -> GivenVoice:
    """Its tokens say the level of the wave, from 1 on, after the first one's."""
    levels = lambda heard: (heard[:, 480::960] / heard[:, 480:481]).round(2)  # noqa: E731
    return GivenVoice(VoiceConfig(noise=0.0), tiny_config().audio, lambda heard: (100 * levels(heard)).round().astype(int), wave)


def test_each_window_has_the_tokens_of_its_seconds():
    stage = tiny_config().stage("semantic")  # Windows of 0.4 s.
    voice = given(ramp(0.7))
    assert voice(stage, 0.0).tolist() == [[100 * n for n in range(1, 11)]]
    assert voice(stage, 0.2)[0, :3].tolist() == [100, 117, 133]  # 6, 7, 8, relative to the first.
    # 18 tokens: two are left at 0.64 s, and none at 0.8 s.
    assert (voice(stage, 0.64)[0] == ABSENT).tolist() == 2 * [False] + 8 * [True] and (voice(stage, 0.8) == ABSENT).all()
    assert (given(None)(stage, 0.0) == ABSENT).all() and given(None)(stage, 0.0).shape == (1, 10)


def test_noise_has_its_share_and_levels_are_one():
    voices = np.sin(np.arange(9600) * np.array([[0.1], [0.2]])).astype(np.float32) * np.array([[1.0], [0.01]], np.float32)
    clean, noisy = VoiceConfig(noise=0.0).heard(voices), VoiceConfig(noise=0.1).heard(voices)
    rms = lambda wave: np.sqrt(np.mean(np.square(wave), axis=1))  # noqa: E731
    np.testing.assert_allclose(rms(clean), 0.1, rtol=1e-3)
    np.testing.assert_allclose(rms(noisy - clean), 0.01, rtol=0.05)
    np.testing.assert_array_equal(noisy, VoiceConfig(noise=0.1).heard(voices))
    # Silence stays softer than its noise.
    assert rms(VoiceConfig(noise=0.0).heard(1e-5 * voices)).max() < 0.001


@pytest.fixture
def scripted(monkeypatch):
    """Stages that draw nothing but code 0."""
    zeros = lambda decoder, weights, prefix, *, num_steps, keys, until=None, **_: np.zeros((len(keys), until or num_steps, decoder.layout.target.levels), int)  # noqa: E731
    monkeypatch.setattr(tracks, "sample_codes", zeros)


def voices_read(model, monkeypatch, make) -> list[np.ndarray]:
    found, draw = [], StageTrack.draw

    def spy(self, streams, **options):
        if self.spec.reads("voice"):
            found.append(streams["voice"])
        return draw(self, streams, **options)

    with monkeypatch.context() as patch:
        patch.setattr(StageTrack, "draw", spy)
        make()
    return found


def test_a_band_accompanies_the_voice(scripted, monkeypatch):
    model = tiny_musiclm(with_voice("semantic"))
    wave = np.sin(np.arange(28_800) * 0.05).astype(np.float32)
    made = []
    with_prompt, by_voice = (voices_read(model, monkeypatch, lambda: made.append(model.accompany(wave, prompt))) for prompt in (PROMPT, None))  # noqa: B023
    assert [each.shape for each in made] == [(28_800,), (28_800,)] and np.isfinite(made[0]).all()
    for read in (with_prompt, by_voice):
        assert all(each.shape == (1, 10) for each in read) and (read[0] != ABSENT).all() and (read[-1] == ABSENT).any()
        np.testing.assert_array_equal(read[0], model.semantic.encode(np.pad(VoiceConfig().heard(wave[None, :9600]), ((0, 0), (0, 0)))))
    # A file of another rate is the same voice.
    assert len(model.accompany((np.repeat(wave, 2), 48_000), PROMPT)) == 28_800


def test_without_a_voice_all_is_absent(scripted, monkeypatch):
    model = tiny_musiclm(with_voice("semantic"))
    for make in (lambda: model.generate([PROMPT], seconds=0.5), lambda: list(model.stream(PROMPT, seconds=0.5))):
        read = voices_read(model, monkeypatch, make)
        assert read and all((each == ABSENT).all() for each in read)


@pytest.mark.parametrize("config", [tiny_config(), with_voice()])
def test_a_model_that_accompanies_none_says_which_would_do(config):
    model, says = tiny_musiclm(config), r"accompanies no voice: choose a bundle for which `musiclm info` lists voice.*with_voice\.gin"
    for make in (model.accompany, lambda wave: model.stream(PROMPT, voice=wave)):
        with pytest.raises(UserError, match=says):
            make(np.ones(48_000, np.float32))


def test_what_is_no_voice_is_refused():
    model = tiny_musiclm(with_voice("semantic"))
    for wave, says in (
        (np.zeros(48_000, np.float32), "the voice is silent"),
        (np.ones(9000, np.float32), r"the voice of 0\.38 s is too short: at least 1\.00 s"),
    ):
        with pytest.raises(UserError, match=says):
            model.accompany(wave)
    assert len(read_voice(np.ones(72_000, np.float32), model.config.audio, seconds=2)) == 48_000


def test_a_mix_has_both_at_one_loudness():
    rng = np.random.default_rng(0)
    band, voice = (rng.normal(size=96_000).astype(np.float32) * scale for scale in (0.3, 0.03))
    mixed = mix(band, voice[:48_000], sample_rate_hz=24_000)
    assert len(mixed) == 96_000 and loudness_lufs(mixed, sample_rate_hz=24_000) == pytest.approx(-14, abs=1)
    first = mixed[12_000:36_000]
    shares = [np.corrcoef(first, wave[12_000:36_000])[0, 1] for wave in (band, voice)]
    np.testing.assert_allclose(shares, 2**-0.5, atol=0.12)
    assert np.corrcoef(mixed[60_000:84_000], band[60_000:84_000])[0, 1] > 0.95
    assert len(mix(band[:48_000], voice, sample_rate_hz=24_000)) == 48_000


def test_the_config_says_whether_there_is_a_voice(tmp_path):
    config = with_voice("semantic")
    config.check_voice()
    assert config.streams["voice"] == dataclasses.replace(config.streams["semantic"], name="voice", optional=True) and "voice" not in tiny_config().to_dict()
    tiny_musiclm(config).save_pretrained(tmp_path / "bundle")
    assert MusicLM.from_pretrained(tmp_path / "bundle").config == config
