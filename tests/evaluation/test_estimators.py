import numpy as np
import pytest

from musiclm_jax.evaluation import estimators
from musiclm_jax.evaluation.estimators import SAMPLE_RATE_HZ, TEMPI_BPM, fit_choice, same_tempo

TRIADS = {"major": (0, 4, 7), "minor": (0, 3, 7)}
# Chords of a clip as (semitones over the tonic, mode): tonic, subdominant, dominant, tonic.
CADENCES = {
    "major": ((0, "major"), (5, "major"), (7, "major"), (0, "major")),
    "minor": ((0, "minor"), (5, "minor"), (7, "major"), (0, "minor")),
}


def play(*, tempo_bpm=100.0, tonic=0, mode="major", instrument="bright", drums=False, seconds=4.0, rng=None):
    """One chord per beat in a cadence, dull or bright, with clicks of noise as drums."""
    rng = rng or np.random.default_rng(0)
    num = round(seconds * SAMPLE_RATE_HZ)
    wave, beat_sec = 1e-4 * rng.standard_normal(num), 60 / tempo_bpm
    time = np.arange(round(beat_sec * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ
    for beat in range(int(seconds / beat_sec)):
        root, chord = CADENCES[mode][beat % 4]
        tone = sum(
            np.sin(2 * np.pi * 440 * 2 ** ((48 + tonic + root + step - 69) / 12) * n * time) / n**2
            for step in TRIADS[chord]
            for n in ((1,) if instrument == "dull" else (1, 2, 3, 4))
        )
        if drums:
            tone = tone + 3 * rng.standard_normal(len(time)) * np.exp(-time / 0.02)
        start = round(beat * beat_sec * SAMPLE_RATE_HZ)
        wave[start : start + len(time)] += (tone * np.exp(-time / 0.3))[: num - start]
    return (0.05 * wave).astype(np.float32)


def draw(rng):
    return {
        "tempo_bpm": int(rng.integers(70, 160)),
        "tonic": int(rng.integers(12)),
        "mode": str(rng.choice(["major", "minor"])),
        "instrument": str(rng.choice(["dull", "bright"])),
        "drums": bool(rng.random() < 0.5),
    }


@pytest.fixture(scope="module")
def fitted():
    rng = np.random.default_rng(0)
    attributes = [draw(rng) for _ in range(40)]
    return estimators.fit_estimators([play(**a, rng=rng) for a in attributes], attributes, rng=rng, degraded=False)


@pytest.mark.parametrize("mode", ["major", "minor"])
@pytest.mark.parametrize("tonic", [0, 5, 11])
def test_mode_and_tonic_in_several_keys(fitted, tonic, mode):
    estimate = fitted.estimate(play(tonic=tonic, mode=mode, tempo_bpm=110))
    assert (estimate.tonic, estimate.mode) == (tonic, mode)


def test_all_four_on_new_clips_also_degraded(fitted):
    rng = np.random.default_rng(1)
    for _ in range(8):
        truth = draw(rng)
        wave = play(**truth, rng=rng)
        for estimate in (fitted.estimate(wave), fitted.estimate(estimators.degrade(wave, rng=rng))):
            assert same_tempo(estimate.tempo_bpm, float(truth["tempo_bpm"]), meter="4/4")
        assert (estimate.mode, estimate.tonic) == (truth["mode"], truth["tonic"])
        assert fitted.estimate(wave).drums == truth["drums"] and fitted.estimate(wave).instrument == truth["instrument"]


def test_features_do_not_depend_on_loudness():
    wave = play()
    loud, soft = estimators.extract(wave), estimators.extract(wave / 8)
    for name in ("timbre", "keys", "tempi"):
        np.testing.assert_allclose(getattr(loud, name), getattr(soft, name), rtol=1e-2, atol=1e-2)


def test_transposing_turns_the_key_features():
    low, high = (estimators._key_features(estimators._chroma(play(tonic=tonic))) for tonic in (2, 5))
    # Seen from the tonic, both are the same, but for where the partials fall between bins.
    np.testing.assert_allclose(low[2], high[5], atol=0.04)
    np.testing.assert_allclose(low[12 + 2], high[12 + 5], atol=0.04)
    assert np.abs(low[2] - low[3]).max() > 0.1


def test_strongest_autocorrelation_is_at_the_beat():
    rng = np.random.default_rng(0)
    wave = np.zeros(8 * SAMPLE_RATE_HZ, np.float32)
    for start in range(0, len(wave) - 2000, SAMPLE_RATE_HZ // 2):  # 120 bpm.
        wave[start : start + 2000] = rng.standard_normal(2000)
    one_beat = estimators.extract(wave).tempi[:, list(estimators._LAGS_BEATS).index(1)]
    # Twice the lag is half the tempo: equally periodic, so only the octave around 120 is asked.
    octave = (TEMPI_BPM > 85) & (TEMPI_BPM < 170)
    assert TEMPI_BPM[octave][one_beat[octave].argmax()] == pytest.approx(120, rel=0.02)


def test_silence_is_heard_without_complaint(fitted):
    assert fitted.estimate(np.zeros(SAMPLE_RATE_HZ * 4, np.float32)).mode in ("major", "minor")


def test_bad_waves_are_refused():
    with pytest.raises(ValueError, match="1 s"):
        estimators.extract(np.zeros(100, np.float32))
    with pytest.raises(ValueError, match="diverged"):
        estimators.extract(np.full(SAMPLE_RATE_HZ, np.nan, np.float32))


def test_same_tempo():
    assert same_tempo(105.9, 100.0) and same_tempo(100.0, 105.9)
    assert not same_tempo(107.0, 100.0)
    assert not same_tempo(200.0, 100.0) and same_tempo(200.0, 100.0, meter="4/4") and same_tempo(50.0, 100.0, meter="4/4")
    assert not same_tempo(300.0, 100.0, meter="4/4") and same_tempo(300.0, 100.0, meter="3/4") and same_tempo(33.3, 100.0, meter="3/4")
    assert same_tempo(150.0, 100.0, meter="6/8") and same_tempo(300.0, 100.0, meter="6/8") and not same_tempo(150.0, 100.0, meter="3/4")


def test_choice_model_recovers_the_rule():
    rng = np.random.default_rng(0)
    features = rng.standard_normal((200, 5, 3))
    best = (features @ np.array([2.0, -1.0, 0.0])).argmax(axis=1)
    model = fit_choice(features, np.eye(5, dtype=bool)[best])
    guess = np.array([model.probabilities(x).argmax() for x in features])
    assert (guess == best).mean() > 0.97
    assert model.weights[0] / model.weights[1] == pytest.approx(-2, rel=0.15)
    assert abs(model.weights[2]) < 0.1 * model.weights[0]
    np.testing.assert_allclose(model.probabilities(features[0]).sum(), 1)


def test_one_sided_clips_cannot_be_fitted():
    attributes = [dict(draw(np.random.default_rng(0)), drums=True)] * 2
    with pytest.raises(ValueError, match="instrument"):
        estimators.fit_estimators([play()] * 2, attributes, rng=np.random.default_rng(0))
