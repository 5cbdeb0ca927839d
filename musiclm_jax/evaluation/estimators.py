"""Estimates of a clip's lead instrument, drums, key, mode and tempo, by means that share nothing with the models they judge.

Spectra, chroma and onset autocorrelations, and linear models on top of them, fitted on real training clips. No neural network, no JAX,
and no codec of ours. The fit takes each clip twice, as it is and mildly degraded (`degrade`), so that a dull or grainy rendering
of a piano is still a piano.

All waves are mono at `SAMPLE_RATE_HZ`. librosa and scikit-learn, of the extra `eval`, are imported where they are used.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import scipy.fft
import scipy.ndimage
import scipy.optimize
import scipy.signal
import scipy.special

from musiclm_jax.arrays import Array, Bool, Float
from musiclm_jax.evaluation.extras import extra

SAMPLE_RATE_HZ = 24_000

MODES = ("major", "minor")
# Candidates of the key: (tonic, mode), 0 = C.
KEYS = tuple((tonic, mode) for mode in MODES for tonic in range(12))
# Candidates of the tempo, 1.5 % apart.
TEMPI_BPM = np.geomspace(55.0, 185.0, 82)
# A candidate this near to the truth counts as right in the fit.
_TEMPO_FIT_TOLERANCE = 0.025

_HOP = 240  # 10 ms.
_WINDOW = 1024  # 43 ms: onsets and timbre.
_CHROMA_HOP = 1200  # 50 ms.
_CHROMA_WINDOW = 4096  # 171 ms: semitones apart from C3 on.
_CHROMA_HZ = (55.0, 2500.0)
_NUM_CEPSTRA = 24
_RMS = 0.1


@dataclasses.dataclass(frozen=True)
class Estimate:
    """The estimates for one clip. Fields are named as in the corpus' metadata."""

    instrument: str
    drums: bool
    # 0 = C.
    tonic: int
    mode: str
    tempo_bpm: float


@dataclasses.dataclass(frozen=True)
class Features:
    """All that the estimators look at.

    timbre: [D], statistics of the spectrum over time. keys: [24, D], the chroma as seen from each of KEYS.
    tempi: [82, D], onset autocorrelations as seen from each of TEMPI_BPM.
    """

    timbre: Float[np.ndarray, "D"]
    keys: Float[np.ndarray, "24 D1"]
    tempi: Float[np.ndarray, "82 D2"]


# ----------------------------------------------------------------- features


def extract(wave: Float[Array, "N"] | Float[np.ndarray, "N"]) -> Features:
    """Features of one clip at 24 kHz, of one second at least. Loudness has no influence; silence is allowed."""
    wave = np.asarray(wave, np.float32)
    if len(wave) < SAMPLE_RATE_HZ:
        raise ValueError(f"expected a clip of {SAMPLE_RATE_HZ} samples (1 s) or more, got {len(wave)}")
    if not np.isfinite(wave).all():
        raise ValueError("expected finite samples, got NaN or infinity: the model that made this clip has diverged")
    wave = wave * (_RMS / (np.sqrt(np.mean(np.square(wave))) + 1e-6))
    power = np.square(_spectrogram(wave, window=_WINDOW, hop=_HOP))
    mel_db = 10 * np.log10(power @ _mel_filters() + 1e-6)  # [T, M]
    return Features(timbre=_timbre(power, mel_db), keys=_key_features(_chroma(wave)), tempi=_tempo_features(mel_db))


def _spectrogram(wave, *, window: int, hop: int, num_fft: int | None = None) -> np.ndarray:
    """Magnitudes [T, F] under a Hann window, frames centred; a sine of amplitude 1 is 1."""
    hann = scipy.signal.get_window("hann", window).astype(np.float32)
    frames = np.lib.stride_tricks.sliding_window_view(np.pad(wave, window // 2), window)[::hop]
    return np.abs(scipy.fft.rfft(frames * (hann / (window / 4)), n=num_fft or window, axis=1))


@functools.cache
def _mel_filters() -> np.ndarray:
    filters = extra("librosa").filters.mel(sr=SAMPLE_RATE_HZ, n_fft=_WINDOW, n_mels=64, fmin=30.0, fmax=11_000.0).T  # [F, M]
    return filters / filters.sum(axis=0)


def _timbre(power: np.ndarray, mel_db: np.ndarray) -> np.ndarray:
    """Cepstra, spectral contrast, centroid, bandwidth and flatness, their statistics over time, and how suddenly bands rise and fall."""
    hz = np.arange(power.shape[1]) * (SAMPLE_RATE_HZ / _WINDOW)
    cepstra = scipy.fft.dct(mel_db, norm="ortho", axis=1)[:, :_NUM_CEPSTRA]
    contrast = extra("librosa").feature.spectral_contrast(S=np.sqrt(power).T, sr=SAMPLE_RATE_HZ, n_fft=_WINDOW, fmin=200.0, n_bands=5).T
    total = power.sum(axis=1) + 1e-9
    centroid = power @ hz / total
    bandwidth = np.sqrt(np.maximum(power @ np.square(hz) / total - np.square(centroid), 0.0))
    flatness = np.exp(np.log(power + 1e-8).mean(axis=1)) / (power.mean(axis=1) + 1e-8)
    shape = np.log(np.stack([centroid + 50.0, bandwidth + 50.0, flatness + 1e-4], axis=1))
    slow = np.concatenate([cepstra, contrast, shape], axis=1)

    rises = (mel_db[3:] - mel_db[:-3]).reshape(-1, 16, 4).mean(axis=2)  # dB in 30 ms, 16 bands.
    # What the hardest strokes add, and what is left of it a little later: struck skins and noise die at once.
    strokes = np.argsort(np.maximum(rises, 0).mean(axis=1))[-max(1, len(rises) // 20) :] + 3
    bands = mel_db.reshape(-1, 16, 4).mean(axis=2)
    later = np.minimum(strokes + 8, len(bands) - 1)
    strokes = np.concatenate([bands[strokes].mean(axis=0), bands[later].mean(axis=0)]) - np.tile(bands.mean(axis=0), 2)
    return np.concatenate(
        [
            slow.mean(axis=0),
            slow.std(axis=0),
            np.percentile(cepstra, [10, 90], axis=0).ravel(),
            (cepstra[2:] - cepstra[:-2]).std(axis=0),
            np.percentile(rises, [2, 25, 75, 98], axis=0).ravel(),
            strokes,
        ]
    ).astype(np.float64)


def _chroma(wave: np.ndarray) -> np.ndarray:
    """Strength of the pitch classes over time, [T, 12], C first, for A = 440 Hz.

    Only spectral peaks count, placed by parabolic interpolation, and those near a semitone most: noise of drums falls away.
    """
    magnitudes = _spectrogram(wave, window=_CHROMA_WINDOW, hop=_CHROMA_HOP, num_fft=2 * _CHROMA_WINDOW)
    bin_hz = SAMPLE_RATE_HZ / (2 * _CHROMA_WINDOW)
    low, high = (round(hz / bin_hz) for hz in _CHROMA_HZ)
    log = np.log(magnitudes[:, low - 1 : high + 2] + 1e-9)
    left, mid, right = log[:, :-2], log[:, 1:-1], log[:, 2:]
    peaks = (mid > left) & (mid >= right) & (mid > mid.max() - np.log(100.0))
    time, place = np.nonzero(peaks)
    left, mid, right = left[peaks], mid[peaks], right[peaks]
    pitch = 69 + 12 * np.log2((low + place + (left - right) / (2 * (left - 2 * mid + right))) * bin_hz / 440.0)
    nearest = np.round(pitch)
    weights = np.exp(mid / 2 - np.square((pitch - nearest) / 0.2))
    chroma = np.zeros((len(magnitudes), 12))
    np.add.at(chroma, (time, nearest.astype(int) % 12), weights)
    return chroma


def _key_features(chroma: np.ndarray) -> np.ndarray:
    """Chroma of the clip, and how often each triad sounds, turned so that the candidate's tonic comes first.

    A major candidate fills the first half of the columns, a minor one the second: one linear model scores both. Nothing of how the clip begins: pieces
    begin with their tonic, clips that are cut out of one, or generated, need not.
    """
    blocks = chroma[: len(chroma) // 8 * 8].reshape(-1, 8, 12).sum(axis=1)  # 0.4 s
    blocks = blocks / (blocks.sum(axis=1, keepdims=True) + 1e-6)
    triads = [np.stack([blocks[:, np.add(chord, root) % 12].sum(axis=1) for root in range(12)], axis=1) for chord in ((0, 4, 7), (0, 3, 7))]
    triads = scipy.special.softmax(12 * np.concatenate(triads, axis=1), axis=1).mean(axis=0)
    profiles = [_unit_sum(chroma.sum(axis=0)), triads[:12], triads[12:]]
    rows = np.stack([np.concatenate([np.roll(profile, -tonic) for profile in profiles]) for tonic in range(12)])  # [12, D]
    blank = np.zeros_like(rows)
    return np.block([[rows, blank], [blank, rows]])


def _unit_sum(x: np.ndarray) -> np.ndarray:
    return x / (x.sum() + 1e-6)


# In beats. Thirds tell three-four time and triplets, eight is two bars.
_LAGS_BEATS = np.array([1 / 4, 1 / 3, 1 / 2, 2 / 3, 3 / 4, 1, 3 / 2, 2, 3, 4, 6, 8])


def _tempo_features(mel_db: np.ndarray) -> np.ndarray:
    """Autocorrelation of the onset strength at lags counted in beats of the candidate tempo, and where the tempo lies."""
    onsets = extra("librosa").onset.onset_strength(S=mel_db.T, sr=SAMPLE_RATE_HZ, hop_length=_HOP)
    onsets = onsets - onsets.mean()
    num = len(onsets)
    correlation = scipy.fft.irfft(np.square(np.abs(scipy.fft.rfft(onsets, 2 * num))))[:num]
    correlation /= np.maximum(num - np.arange(num), num / 3)  # Fewer pairs at long lags.
    correlation /= correlation[0] + 1e-9
    correlation = np.convolve(correlation, [0.25, 0.5, 0.25], mode="same")  # Players are some milliseconds early or late.
    lags = (60 * SAMPLE_RATE_HZ / _HOP) * _LAGS_BEATS / TEMPI_BPM[:, None]  # In frames.
    octave = np.log2(TEMPI_BPM / 100)
    return np.column_stack([np.interp(lags, np.arange(num), correlation, right=0.0), octave, np.square(octave)])


def degrade(wave: Float[np.ndarray, "N"], *, rng: np.random.Generator) -> Float[np.ndarray, "N"]:
    """A mild, random degradation of the kinds that any lossy coder makes, float32.

    A low-pass at 2.5 to 11 kHz, an equalizer of +-4 dB, weak partials lost (as in MP3 at a low rate), noise that follows the signal
    through wrong magnitudes and phases, more so at high frequencies, and white or pink hiss 15 to 50 dB below the signal.
    """
    hz, _, spectrum = scipy.signal.stft(wave, SAMPLE_RATE_HZ, nperseg=1024, noverlap=768)  # [F, T]
    spectrum = spectrum.astype(np.complex64)
    anchors = np.geomspace(60, 12_000, 8)
    gain_db = np.interp(np.log(hz + 30), np.log(anchors), rng.uniform(-4, 4, size=len(anchors)))
    cutoff_hz = np.exp(rng.uniform(np.log(2500), np.log(11_000)))
    gain = 10 ** (gain_db / 20) / np.sqrt(1 + (hz / cutoff_hz) ** 8)
    spread = rng.uniform(0.05, 0.5) * np.clip(hz / 4000, 0.2, 1.5)
    noise = _complex_noise(rng, spectrum.shape)
    noisy = spectrum * (1 + spread[:, None].astype(np.float32) * noise)
    size = np.abs(spectrum)
    local = scipy.ndimage.maximum_filter1d(size, 33, axis=0)  # The loudest within 400 Hz.
    noisy[size < local * 10 ** (-rng.uniform(20, 45) / 20)] *= 0.1
    color = (hz + 100.0) ** rng.uniform(-0.5, 0.0)
    level = np.sqrt(np.mean(np.square(size)) / np.mean(np.square(color))) * 10 ** (-rng.uniform(15, 50) / 20)
    hiss = (level * color)[:, None].astype(np.float32) * rng.permutation(noise, axis=0)
    _, out = scipy.signal.istft(noisy * gain[:, None].astype(np.float32) + hiss, SAMPLE_RATE_HZ, nperseg=1024, noverlap=768)
    return out[: len(wave)].astype(np.float32)


def _complex_noise(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    real, imaginary = rng.standard_normal((2, *shape), np.float32)
    return real + 1j * imaginary


# ------------------------------------------------------------------- models


@dataclasses.dataclass(frozen=True)
class ChoiceModel:
    """Conditional logit: candidate k of a clip scores features[k] . weights, the same weights for every candidate."""

    weights: Float[np.ndarray, "D"]

    def probabilities(self, features: Float[np.ndarray, "K D"]) -> Float[np.ndarray, "K"]:
        return scipy.special.softmax(features @ self.weights)


def fit_choice(features: Float[np.ndarray, "n K D"], right: Bool[np.ndarray, "n K"], *, penalty: float = 1e-3) -> ChoiceModel:
    """Maximum likelihood that one of the right candidates is chosen, with an L2 penalty on the weights of standardized features."""
    scale = 1 / (features.std(axis=(0, 1)) + 1e-3)
    scaled = features * scale

    def loss(weights):
        scores = scaled @ weights
        log_all = scipy.special.logsumexp(scores, axis=1, keepdims=True)
        log_right = scipy.special.logsumexp(np.where(right, scores, -np.inf), axis=1, keepdims=True)
        surplus = np.exp(scores - log_all) - np.where(right, np.exp(scores - log_right), 0.0)
        gradient = np.einsum("nk,nkd->d", surplus, scaled) / len(scaled)
        return (log_all - log_right).mean() + penalty / 2 * weights @ weights, gradient + penalty * weights

    start = np.zeros(features.shape[-1])
    result = scipy.optimize.minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 500})
    return ChoiceModel(result.x * scale)


@dataclasses.dataclass(frozen=True)
class Estimators:
    """Fitted estimators: call `estimate`."""

    # scikit-learn pipelines over Features.timbre.
    instrument: Any
    drums: Any
    key: ChoiceModel
    tempo: ChoiceModel

    def estimate(self, wave: Float[Array, "N"] | Float[np.ndarray, "N"]) -> Estimate:
        """Estimates for one clip at 24 kHz, best of the length that the estimators were fitted on."""
        features = extract(wave)
        keys = self.key.probabilities(features.keys)
        minor = keys[12:].sum() > keys[:12].sum()  # The mode is surer than the key: all tonics vote.
        tonic = int((keys[12:] if minor else keys[:12]).argmax())
        return Estimate(
            instrument=str(self.instrument.predict(features.timbre[None])[0]),
            drums=bool(self.drums.predict(features.timbre[None])[0]),
            tonic=tonic,
            mode=MODES[int(minor)],
            tempo_bpm=float(TEMPI_BPM[self.tempo.probabilities(features.tempi).argmax()]),
        )


def fit_spectral_classifier(timbre: Float[np.ndarray, "n D"], labels: Sequence[str] | Sequence[bool]):
    """Standardization and multinomial logistic regression, a scikit-learn pipeline with `predict(timbre)`."""
    make_pipeline = extra("sklearn.pipeline").make_pipeline
    # Stronger than scikit-learn's default penalty: there are hardly more clips than features.
    regression = extra("sklearn.linear_model").LogisticRegression(C=0.1, max_iter=2000)
    return make_pipeline(extra("sklearn.preprocessing").StandardScaler(), regression).fit(timbre, np.asarray(labels))


def fit_estimators(
    waves: Sequence[Float[np.ndarray, "N"]], attributes: Sequence[Mapping[str, Any]], *, rng: np.random.Generator, degraded: bool = True
) -> Estimators:
    """Fits all four on real training clips, cut to the length of the clips to be judged.

    Args:
        waves: clips at 24 kHz.
        attributes: of each clip: "instrument", "drums", "tonic" (0 = C), "mode", "tempo_bpm".
        rng: for the degradations.
        degraded: also fit on a degraded copy of every clip (see `degrade`).

    Raises:
        ValueError: no clips, or clips that all have the same instrument or the same drums.
    """
    for name in ("instrument", "drums"):
        if len({clip[name] for clip in attributes}) < 2:
            raise ValueError(f"expected clips with at least two values of {name!r} to tell apart: fit on more or other clips")
    features = [extract(wave) for wave in waves]
    labels = list(attributes)
    if degraded:
        features += [extract(degrade(wave, rng=rng)) for wave in waves]
        labels += labels
    timbre = np.stack([f.timbre for f in features])
    key_is = np.array([[clip["tonic"] == tonic and clip["mode"] == mode for tonic, mode in KEYS] for clip in labels])
    tempo_bpm = np.clip([clip["tempo_bpm"] for clip in labels], TEMPI_BPM[0], TEMPI_BPM[-1])
    tempo_is = np.abs(np.log(TEMPI_BPM / tempo_bpm[:, None])) < _TEMPO_FIT_TOLERANCE
    return Estimators(
        instrument=fit_spectral_classifier(timbre, [clip["instrument"] for clip in labels]),
        drums=fit_spectral_classifier(timbre, [clip["drums"] for clip in labels]),
        # Whatever the penalty, real clips are told apart. With a small one, verdicts on less clear clips depend on which clips were fitted: docs/demo.md.
        key=fit_choice(np.stack([f.keys for f in features]), key_is, penalty=1e-2),
        tempo=fit_choice(np.stack([f.tempi for f in features]), tempo_is),
    )


# ------------------------------------------------------------------ scoring

# Beside the octave, a waltz may be felt once per bar.
_RELATED = {"4/4": (1.0, 2.0, 1 / 2), "3/4": (1.0, 2.0, 1 / 2, 3.0, 1 / 3)}


def same_tempo(estimate_bpm: float, truth_bpm: float, *, meter: str | None = None, tolerance: float = 0.06) -> bool:
    """Whether two tempi agree within `tolerance`.

    Args:
        meter: None: the tempo itself must agree. "4/4": double and half are right as well. "3/4": also three times and a third.
    """
    factors = (1.0,) if meter is None else _RELATED[meter]
    return any(abs(np.log(estimate_bpm / (factor * truth_bpm))) <= np.log1p(tolerance) for factor in factors)
