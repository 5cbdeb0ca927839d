"""musicnn (Pons and Serra, arXiv 1909.06654): a small network that tags 3 s of music, trained on MagnaTagATune. Inference only.

    wave, 16 kHz -> log-mel [187, 96] -> filters over frequency and over time -> three convolutions over time -> max and mean over time -> 200 units -> 50 tags

It judges music here: its 200 units are an embedding, its tags a classification. The package contains the trained weights (`evaluation/judges.py`), which
`tools/read_musicnn.py` takes from their wheel.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from musiclm_jax.arrays import Array, Float
from musiclm_jax.audio.features import mel_filterbank, stft
from musiclm_jax.checks import SIZE, check_numbers

SAMPLE_RATE_HZ = 16_000
TAGS = (
    "guitar", "classical", "slow", "techno", "strings", "drums", "electronic", "rock", "fast", "piano", "ambient", "beat", "violin", "vocal", "synth",
    "female", "indian", "opera", "male", "singing", "vocals", "no vocals", "harpsichord", "loud", "quiet", "flute", "woman", "male vocal", "no vocal", "pop",
    "soft", "sitar", "solo", "man", "classic", "choir", "voice", "new age", "dance", "male voice", "female vocal", "beats", "harp", "cello", "no voice",
    "weird", "country", "metal", "female voice", "choral",
)  # fmt: skip
_WINDOW, _HOP, _MELS, _FRAMES = 512, 256, 96, 187
# Samples of a patch of 187 frames that are centred on its 187 hops: 3 s.
PATCH_HOP = _FRAMES * _HOP
PATCH_SAMPLES = PATCH_HOP + _HOP
# The shortest wave with one patch: the first and the last frame are centred on its ends.
MIN_SAMPLES = PATCH_HOP - _HOP


@dataclasses.dataclass(frozen=True)
class MusicnnConfig:
    """Sizes of musicnn. The defaults are those of its trained weights."""

    # Filters of 7 frames by 0.4 and 0.7 of the mel bins.
    timbral_filters: int = 204
    timbral_bins: tuple[int, int] = (38, 67)
    # Filters of one mel bin by these numbers of frames.
    temporal_filters: int = 51
    temporal_frames: tuple[int, int, int] = (128, 64, 32)
    # Filters of each convolution over time, of 7 frames.
    middle_filters: int = 64
    # Units before the tags, the embedding.
    dim: int = 200
    num_tags: int = len(TAGS)

    def __post_init__(self):
        check_numbers(self, timbral_filters=SIZE, timbral_bins=SIZE, temporal_filters=SIZE, temporal_frames=SIZE, middle_filters=SIZE, dim=SIZE, num_tags=SIZE)


class Affine(nn.Module):
    """x * scale + bias for each channel: what a trained batch norm is."""

    @nn.compact
    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        shape = x.shape[-1:]
        return x * self.param("scale", nn.initializers.ones, shape) + self.param("bias", nn.initializers.zeros, shape)


class Musicnn(nn.Module):
    """The network. Returns (embeddings [B, D], logits of the tags [B, V])."""

    config: MusicnnConfig = MusicnnConfig()

    @nn.compact
    def __call__(self, mel: Float[Array, "B T M"]) -> tuple[Float[Array, "B D"], Float[Array, "B V"]]:
        c = self.config
        x = Affine(name="input_norm")(mel[..., None])
        timbral = [(c.timbral_filters, (7, bins), ((3, 3), (0, 0))) for bins in c.timbral_bins]
        temporal = [(c.temporal_filters, (frames, 1), "SAME") for frames in c.temporal_frames]
        names = (*(f"timbral_{i}" for i in range(len(timbral))), *(f"temporal_{i}" for i in range(len(temporal))))
        # Each filter's largest response over frequency. [B, T, M', filters] -> [B, T, filters]
        front = [self._convolve(x, *shape, name=name).max(axis=2) for name, shape in zip(names, (*timbral, *temporal), strict=True)]
        layers = [jnp.concatenate(front, axis=-1)]
        for i in range(3):
            y = self._convolve(layers[-1], c.middle_filters, (7,), ((3, 3),), name=f"middle_{i}")
            layers.append(y + layers[-1] if i else y)
        x = jnp.concatenate(layers, axis=-1)
        # The largest and the mean value of each channel, side by side.
        x = jnp.stack([x.max(axis=1), x.mean(axis=1)], axis=-1).reshape(len(x), -1)
        x = nn.relu(nn.Dense(c.dim, name="dense")(Affine(name="pool_norm")(x)))
        embedding = Affine(name="dense_norm")(x)
        return embedding, nn.Dense(c.num_tags, name="tags")(embedding)

    def _convolve(self, x: Array, filters: int, kernel: tuple[int, ...], padding: Any, *, name: str) -> Array:
        return Affine(name=f"{name}_norm")(nn.relu(nn.Conv(filters, kernel, padding=padding, name=name)(x)))


def patches(wave: Float[np.ndarray, "N"]) -> Float[np.ndarray, "P n"]:
    """Cuts a wave at 16 kHz into the samples of its whole patches of 3 s, one after the other. Samples after the last whole patch are ignored.

    Raises:
        ValueError: the wave is shorter than MIN_SAMPLES.
    """
    if len(wave) < MIN_SAMPLES:
        raise ValueError(f"{len(wave)} samples, expected at least {MIN_SAMPLES}")
    count = (len(wave) // _HOP + 1) // _FRAMES
    padded = np.pad(wave, (_HOP, _HOP))
    return np.stack([padded[i * PATCH_HOP : i * PATCH_HOP + PATCH_SAMPLES] for i in range(count)])


def log_mel(patches: Float[Array, "B n"]) -> Float[Array, "B T M"]:
    """The network's input: log10(1 + 10,000 x), of a mel spectrogram of powers x."""
    spectrum = stft(patches, window=_WINDOW, hop=_HOP)[:, :_FRAMES]
    filters = mel_filterbank(sample_rate_hz=SAMPLE_RATE_HZ, num_fft=_WINDOW, num_mels=_MELS, min_hz=0.0, max_hz=SAMPLE_RATE_HZ / 2)
    power = jnp.square(spectrum.real) + jnp.square(spectrum.imag)
    mel = jnp.einsum("btf,fm->btm", power, filters, precision=jax.lax.Precision.HIGHEST)
    # The network was trained on spectrograms that were stored as float16.
    return jnp.log10(1e4 * mel.astype(jnp.float16).astype(jnp.float32) + 1)


@functools.partial(jax.jit, static_argnums=0)
def apply(config: MusicnnConfig, params: Any, patches: Float[Array, "B n"]) -> tuple[Float[Array, "B D"], Float[Array, "B V"]]:
    """The embeddings and the logits of the tags of each of the `patches`."""
    return Musicnn(config).apply({"params": params}, log_mel(patches))


def variable_shapes(config: MusicnnConfig) -> Any:
    """The shapes of `params`."""
    mel = jax.ShapeDtypeStruct((1, _FRAMES, _MELS), jnp.float32)
    return jax.eval_shape(Musicnn(config).init, jax.eval_shape(lambda: jax.random.key(0)), mel)["params"]
