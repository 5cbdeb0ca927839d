"""Estimates of a clip's lead instrument, drums, key, mode and tempo, independent of the models that they evaluate.

The estimators are linear models of spectra, chroma and onset autocorrelations, fitted on real training clips. They use no neural network, no JAX and no
codec of this package. The fit uses each clip twice, unchanged and mildly degraded (`degrade`), so that a piano with coding artefacts is still recognized
as a piano.

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
METERS = ("3/4", "4/4")
# In the fit, candidates within this distance of the true tempo (in its logarithm) are right.
_TEMPO_FIT_TOLERANCE = 0.025

_HOP = 240  # 10 ms.
_WINDOW = 1024  # 43 ms, for onsets and timbre.
_CHROMA_HOP = 1200  # 50 ms.
_CHROMA_WINDOW = 4096  # 171 ms, which resolves semitones from C3 on.
_CHROMA_HZ = (55.0, 2500.0)
_NUM_CEPSTRA = 24
_RMS = 0.1


@dataclasses.dataclass(frozen=True)
class Estimate:
    """The estimates for one clip. The fields have the names of the attributes in a corpus' metadata."""

    # As `lead`.
    instrument: str
    drums: bool
    # 0 = C.
    tonic: int
    mode: str
    tempo_bpm: float


@dataclasses.dataclass(frozen=True)
class Features:
    """The features of a clip, the input of the estimators."""

    # Statistics of the spectrum over time.
    timbre: Float[np.ndarray, "D"]
    # Chroma features relative to each of KEYS.
    keys: Float[np.ndarray, "24 D1"]
    # Onset autocorrelations relative to each of TEMPI_BPM.
    tempi: Float[np.ndarray, "82 D2"]
    # And to bars of each of METERS.
    meters: Float[np.ndarray, "82 2 D3"]


# ----------------------------------------------------------------- features


def extract(wave: Float[Array, "N"] | Float[np.ndarray, "N"]) -> Features:
    """Features of one clip at 24 kHz, of at least one second. They do not depend on its loudness. Silence is allowed.

    Raises:
        ValueError: the clip is shorter than 1 s, or has NaN or infinite samples.
    """
    wave = np.asarray(wave, np.float32)
    if len(wave) < SAMPLE_RATE_HZ:
        raise ValueError(f"expected a clip of {SAMPLE_RATE_HZ} samples (1 s) or more, got {len(wave)}")
    if not np.isfinite(wave).all():
        raise ValueError("expected finite samples, got NaN or infinity: the model that made this clip has diverged")
    wave = wave * (_RMS / (np.sqrt(np.mean(np.square(wave))) + 1e-6))
    power = np.square(_spectrogram(wave, window=_WINDOW, hop=_HOP))
    mel_db = 10 * np.log10(power @ _mel_filters() + 1e-6)  # [T, M]
    correlation = _onset_correlation(mel_db)
    meters = _meter_features(correlation, _onset_correlation(mel_db[:, :_LOW_BANDS]))
    return Features(_timbre(power, mel_db), _key_features(_chroma(wave)), _tempo_features(correlation), meters)


def _spectrogram(wave, *, window: int, hop: int, num_fft: int | None = None) -> np.ndarray:
    """Magnitudes [T, F] with a Hann window and centred frames. A sine of amplitude 1 has magnitude 1."""
    hann = scipy.signal.get_window("hann", window).astype(np.float32)
    frames = np.lib.stride_tricks.sliding_window_view(np.pad(wave, window // 2), window)[::hop]
    return np.abs(scipy.fft.rfft(frames * (hann / (window / 4)), n=num_fft or window, axis=1))


@functools.cache
def _mel_filters() -> np.ndarray:
    filters = extra("librosa").filters.mel(sr=SAMPLE_RATE_HZ, n_fft=_WINDOW, n_mels=64, fmin=30.0, fmax=11_000.0).T  # [F, M]
    return filters / filters.sum(axis=0)


def _timbre(power: np.ndarray, mel_db: np.ndarray) -> np.ndarray:
    """Statistics over time of cepstra, spectral contrast, centroid, bandwidth and flatness, and of the rises and falls of the level in bands."""
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
    # The level that the strongest onsets add, and the level 80 ms later: drum sounds decay faster than notes.
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

    It counts spectral peaks only, located by parabolic interpolation and weighted by their closeness to a semitone, which suppresses the noise of drums.
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
    """The clip's chroma and frequencies of triads, [24, D], rotated so that the tonic of each candidate comes first.

    Major candidates use the first half of the columns, minor ones the second half, so that one linear model scores both. The beginning of the clip has no
    features of its own: pieces begin with their tonic, but crops and generated clips need not.
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


# Lags of the autocorrelation, in beats. Multiples of a third are for three-four time and triplets; eight beats are two bars.
_LAGS_BEATS = np.array([1 / 4, 1 / 3, 1 / 2, 2 / 3, 3 / 4, 1, 3 / 2, 2, 3, 4, 6, 8])


def _onset_correlation(mel_db: np.ndarray) -> np.ndarray:
    """The autocorrelation of the onset strength, one value per hop."""
    onsets = extra("librosa").onset.onset_strength(S=mel_db.T, sr=SAMPLE_RATE_HZ, hop_length=_HOP)
    onsets = onsets - onsets.mean()
    num = len(onsets)
    correlation = scipy.fft.irfft(np.square(np.abs(scipy.fft.rfft(onsets, 2 * num))))[:num]
    correlation /= np.maximum(num - np.arange(num), num / 3)  # There are fewer pairs at long lags.
    correlation /= correlation[0] + 1e-9
    return np.convolve(correlation, [0.25, 0.5, 0.25], mode="same")  # Notes may be some milliseconds early or late.


def _tempo_features(correlation: np.ndarray) -> np.ndarray:
    """For each candidate tempo, the correlation at lags in beats of this tempo, and its octave relative to 100 bpm."""
    octave = np.log2(TEMPI_BPM / 100)
    return np.column_stack([_at_beats(correlation, _LAGS_BEATS, TEMPI_BPM[:, None]), octave, np.square(octave)])


def _at_beats(correlation: np.ndarray, beats: np.ndarray, tempo_bpm: np.ndarray | float) -> np.ndarray:
    lags = (60 * SAMPLE_RATE_HZ / _HOP) * beats / tempo_bpm  # In frames.
    return np.interp(lags, np.arange(len(correlation)), correlation, right=0.0)


# Of the mel bands, those of bass and kick drum, which mark the bars.
_LOW_BANDS = 8


def _meter_features(*correlations: np.ndarray) -> np.ndarray:
    """For each candidate tempo and each of METERS, correlations at lags of half a bar to three bars, and how far they are above those of the other meter."""
    bars = np.array([1 / 2, 1, 2, 3])
    at = lambda meter: [_at_beats(each, bars * int(meter[0]), TEMPI_BPM[:, None]) for each in correlations]  # noqa: E731
    both = np.stack([np.concatenate(at(meter), axis=1) for meter in METERS], axis=1)
    first = np.broadcast_to(np.array([1.0, 0.0])[None, :, None], (*both.shape[:2], 1))
    return np.concatenate([both, both - both[:, ::-1], first], axis=2)


def degrade(wave: Float[np.ndarray, "N"], *, rng: np.random.Generator) -> Float[np.ndarray, "N"]:
    """A mild random degradation like those of lossy codecs, float32.

    It has a low-pass at 2.5 to 11 kHz, an equalizer of +-4 dB, removal of weak partials (as in MP3 at a low bitrate), noise in magnitudes and phases that is
    proportional to the signal and stronger at high frequencies, and white or pink noise 15 to 50 dB below the signal.
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
    local = scipy.ndimage.maximum_filter1d(size, 33, axis=0)  # The loudest bin within 400 Hz.
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
    """Conditional logit: candidate k of a clip has the score features[k] . weights, with the same weights for all candidates."""

    weights: Float[np.ndarray, "D"]

    def probabilities(self, features: Float[np.ndarray, "K D"]) -> Float[np.ndarray, "K"]:
        """The probability of each candidate of a clip."""
        return scipy.special.softmax(features @ self.weights)


def fit_choice(features: Float[np.ndarray, "n K D"], right: Bool[np.ndarray, "n K"], *, penalty: float = 1e-3) -> ChoiceModel:
    """Fits a ChoiceModel by maximum likelihood of the right candidates of n clips, with an L2 penalty on the weights of standardized features."""
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
    """The fitted estimators of all attributes."""

    # scikit-learn pipelines over Features.timbre.
    instrument: Any
    drums: Any
    key: ChoiceModel
    tempo: ChoiceModel

    def estimate(self, wave: Float[Array, "N"] | Float[np.ndarray, "N"]) -> Estimate:
        """Estimates for one clip at 24 kHz, preferably of the length on which the estimators were fitted."""
        features = extract(wave)
        keys = self.key.probabilities(features.keys)
        minor = keys[12:].sum() > keys[:12].sum()  # The sum over all tonics is more reliable than the mode of the best key.
        tonic = int((keys[12:] if minor else keys[:12]).argmax())
        return Estimate(
            instrument=str(self.instrument.predict(features.timbre[None])[0]),
            drums=bool(self.drums.predict(features.timbre[None])[0]),
            tonic=tonic,
            mode=MODES[int(minor)],
            tempo_bpm=float(TEMPI_BPM[self.tempo.probabilities(features.tempi).argmax()]),
        )


def fit_spectral_classifier(timbre: Float[np.ndarray, "n D"], labels: Sequence[str] | Sequence[bool]):
    """Fits standardization and multinomial logistic regression. Returns a scikit-learn pipeline with `predict(timbre)`."""
    make_pipeline = extra("sklearn.pipeline").make_pipeline
    # A stronger penalty than scikit-learn's default, because there are hardly more clips than features.
    regression = extra("sklearn.linear_model").LogisticRegression(C=0.1, max_iter=2000)
    return make_pipeline(extra("sklearn.preprocessing").StandardScaler(), regression).fit(timbre, np.asarray(labels))


def lead(attributes: Mapping[str, Any]) -> str:
    """The class of the lead instrument: its family if the attributes have one, since a corpus with families has too many instruments to tell apart."""
    return attributes.get("family", attributes["instrument"])


def fit_estimators(
    waves: Sequence[Float[np.ndarray, "N"]], attributes: Sequence[Mapping[str, Any]], *, rng: np.random.Generator, degraded: bool = True
) -> Estimators:
    """Fits all estimators on real training clips, which should have the length of the clips to be evaluated.

    Args:
        waves: clips at 24 kHz.
        attributes: of each clip, "instrument" (and "family"), "drums", "tonic" (0 = C), "mode" and "tempo_bpm".
        rng: for the degradations.
        degraded: whether to fit on a degraded copy of each clip as well (see `degrade`).

    Raises:
        ValueError: there are no clips, or all clips have the same instrument or the same drums.
    """
    for name in ("instrument", "drums"):
        if len({clip[name] for clip in attributes}) < 2:
            raise ValueError(f"expected clips with at least two different values of {name!r}: fit on more or other clips")
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
        instrument=fit_spectral_classifier(timbre, [lead(clip) for clip in labels]),
        drums=fit_spectral_classifier(timbre, [clip["drums"] for clip in labels]),
        # Real clips are classified well with any penalty. With a small one, estimates of less clear clips depend on the clips of the fit: docs/log.md.
        key=fit_choice(np.stack([f.keys for f in features]), key_is, penalty=1e-2),
        tempo=fit_choice(np.stack([f.tempi for f in features]), tempo_is),
    )


# ------------------------------------------------------------------ scoring

# Factors between tempi that may be confused. Besides the octave, a waltz may be counted once per bar, and a jig in quavers or in crotchets.
_OCTAVES = (1.0, 2.0, 1 / 2)
_RELATED = {"4/4": _OCTAVES, "3/4": (*_OCTAVES, 3.0, 1 / 3), "6/8": (*_OCTAVES, 3.0, 1 / 3, 3 / 2, 2 / 3)}


def same_tempo(estimate_bpm: float | int, truth_bpm: float | int, *, meter: str | None = None, tolerance: float = 0.06) -> bool:
    """Whether two tempi agree within the relative `tolerance`.

    Args:
        meter: which multiples of the tempo are also right. None: none. "4/4": double and half. "3/4": double, half, three times and a third.
            "6/8": these, and three halves and two thirds.
    """
    factors = (1.0,) if meter is None else _RELATED[meter]
    return any(abs(np.log(estimate_bpm / (factor * truth_bpm))) <= np.log1p(tolerance) for factor in factors)
