"""VGGish (arXiv 1609.09430): the network for sounds of AudioSet whose embeddings the Fréchet audio distance of most papers is computed on. Inference only.

wave, 16 kHz -> log-mel [96, 64] -> six convolutions, four poolings -> two layers of 4,096 units -> embedding of 128, for each 0.96 s
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
from musiclm_jax.audio.features import htk_filterbank, magnitude, stft
from musiclm_jax.checks import SIZE, check_numbers

SAMPLE_RATE_HZ = 16_000
_WINDOW, _HOP, _NUM_FFT, _MELS, _FRAMES = 400, 160, 512, 64, 96
_MIN_HZ, _MAX_HZ, _FLOOR = 125.0, 7500.0, 0.01
PATCH_HOP = _FRAMES * _HOP
PATCH_SAMPLES = PATCH_HOP - _HOP + _WINDOW


@dataclasses.dataclass(frozen=True)
class VggishConfig:
    """Sizes of VGGish. The defaults are those of the published weights."""

    # Channels of the convolutions; a pooling follows the first, the second, the fourth and the last.
    widths: tuple[int, int, int, int, int, int] = (64, 128, 256, 256, 512, 512)
    hidden_dim: int = 4096
    dim: int = 128

    def __post_init__(self):
        check_numbers(self, widths=SIZE, hidden_dim=SIZE, dim=SIZE)


class Vggish(nn.Module):
    """The network. The embedding is the output of the last layer before its activation, without the PCA of the AudioSet release, as in fadtk."""

    config: VggishConfig = VggishConfig()

    @nn.compact
    def __call__(self, mel: Float[Array, "B T M"]) -> Float[Array, "B D"]:
        x = mel[..., None]
        for i, width in enumerate(self.config.widths):
            x = nn.relu(nn.Conv(width, (3, 3), padding=1, name=f"conv_{i}")(x))
            if i in (0, 1, 3, 5):
                x = nn.max_pool(x, (2, 2), strides=(2, 2))
        x = x.reshape(len(x), -1)
        for i in range(2):
            x = nn.relu(nn.Dense(self.config.hidden_dim, name=f"dense_{i}")(x))
        return nn.Dense(self.config.dim, name="dense_2")(x)


def patches(wave: Float[np.ndarray, "N"]) -> Float[np.ndarray, "P n"]:
    """Cuts a wave at 16 kHz into the samples of its whole patches of 0.96 s. Raises ValueError for a wave of less than PATCH_SAMPLES."""
    if len(wave) < PATCH_SAMPLES:
        raise ValueError(f"{len(wave)} samples, expected at least {PATCH_SAMPLES}")
    return np.stack([wave[start : start + PATCH_SAMPLES] for start in range(0, len(wave) - PATCH_SAMPLES + 1, PATCH_HOP)])


def log_mel(patches: Float[Array, "B n"]) -> Float[Array, "B T M"]:
    """The network's input: log(0.01 + x), of a mel spectrogram of magnitudes x."""
    spectrum = magnitude(stft(patches, window=_WINDOW, hop=_HOP, num_fft=_NUM_FFT)[:, :_FRAMES], epsilon=0.0)
    filters = htk_filterbank(sample_rate_hz=SAMPLE_RATE_HZ, num_fft=_NUM_FFT, num_mels=_MELS, min_hz=_MIN_HZ, max_hz=_MAX_HZ)
    return jnp.log(jnp.einsum("btf,fm->btm", spectrum, filters, precision=jax.lax.Precision.HIGHEST) + _FLOOR)


@functools.partial(jax.jit, static_argnums=0)
def apply(config: VggishConfig, params: Any, patches: Float[Array, "B n"]) -> Float[Array, "B D"]:
    """The embedding of each of the `patches`."""
    return Vggish(config).apply({"params": params}, log_mel(patches))


def from_torch(state: dict[str, np.ndarray]) -> tuple[VggishConfig, Any]:
    """The config and the parameters from the state dict of torchvggish, as arrays.

    Raises:
        KeyError, ValueError: it is another network's.
    """
    convolutions, layers = (0, 3, 6, 8, 11, 13), (0, 2, 4)
    params = {
        f"conv_{i}": {"kernel": state[f"features.{n}.weight"].transpose(2, 3, 1, 0), "bias": state[f"features.{n}.bias"]} for i, n in enumerate(convolutions)
    }
    params |= {f"dense_{i}": {"kernel": state[f"embeddings.{n}.weight"].T, "bias": state[f"embeddings.{n}.bias"]} for i, n in enumerate(layers)}
    widths = tuple(len(params[f"conv_{i}"]["bias"]) for i in range(len(convolutions)))
    return VggishConfig(widths, len(params["dense_0"]["bias"]), len(params["dense_2"]["bias"])), params


def variable_shapes(config: VggishConfig) -> Any:
    """The shapes of `params`."""
    mel = jax.ShapeDtypeStruct((1, _FRAMES, _MELS), jnp.float32)
    return jax.eval_shape(Vggish(config).init, jax.eval_shape(lambda: jax.random.key(0)), mel)["params"]
