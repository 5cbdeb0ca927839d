"""PaSST (arXiv 2110.05069): the AST with positions of time and of frequency apart, a classifier of AudioSet's 527 classes. Inference only, without patchout.

wave, 32 kHz -> log-mel [100 a second, 128] -> AST -> norm and a dense layer -> logits, for each 10 s
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from musiclm_jax.arrays import Array, Float
from musiclm_jax.audio.features import frame, htk_filterbank
from musiclm_jax.checks import SIZE, check_numbers
from musiclm_jax.models.ast import AST, ASTConfig
from musiclm_jax.nn.layers import LayerNorm

SAMPLE_RATE_HZ = 32_000
_WINDOW, _HOP, _NUM_FFT, _MELS = 800, 320, 1024, 128
_MAX_HZ, _FLOOR = 15_000.0, 1e-5
_PATCH, _HEAD_DIM = 16, 64


@dataclasses.dataclass(frozen=True)
class PasstConfig:
    """Sizes of PaSST. The defaults are those of the published weights for clips of 10 s."""

    ast: ASTConfig = ASTConfig(max_frames=1005)
    num_classes: int = 527

    def __post_init__(self):
        check_numbers(self, num_classes=SIZE)

    @property
    def window_samples(self) -> int:
        """The clips that it was trained on, whole seconds."""
        return self.ast.max_frames * _HOP // SAMPLE_RATE_HZ * SAMPLE_RATE_HZ


class Passt(nn.Module):
    """The network."""

    config: PasstConfig = PasstConfig()

    @nn.compact
    def __call__(self, mel: Float[Array, "B T M"]) -> Float[Array, "B V"]:
        x = LayerNorm(epsilon=1e-5, name="head_norm")(AST(self.config.ast, name="ast")(mel))
        return nn.Dense(self.config.num_classes, name="head")(x)


def log_mel(wave: Float[Array, "B N"]) -> Float[Array, "B T M"]:
    """The network's input: log(1e-5 + x) of a mel spectrogram of powers x, after a pre-emphasis, scaled. Frames are centred: T = 1 + (N - 1) // 320."""
    num_frames = 1 + (wave.shape[1] - 1) // _HOP
    wave = jnp.pad(wave[:, 1:] - 0.97 * wave[:, :-1], ((0, 0), (_WINDOW // 2, _WINDOW // 2)), mode="reflect")
    hann = jnp.asarray(0.5 - 0.5 * np.cos(2 * np.pi * np.arange(_WINDOW) / (_WINDOW - 1)), jnp.float32)
    spectrum = jnp.fft.rfft(frame(wave, window=_WINDOW, hop=_HOP)[:, :num_frames] * hann, n=_NUM_FFT)
    filters = htk_filterbank(sample_rate_hz=SAMPLE_RATE_HZ, num_fft=_NUM_FFT, num_mels=_MELS, min_hz=0.0, max_hz=_MAX_HZ)
    power = jnp.square(spectrum.real) + jnp.square(spectrum.imag)
    return (jnp.log(jnp.einsum("btf,fm->btm", power, filters, precision=jax.lax.Precision.HIGHEST) + _FLOOR) + 4.5) / 5


@functools.partial(jax.jit, static_argnums=0)
def apply(config: PasstConfig, params: Any, waves: Float[Array, "B n"]) -> Float[Array, "B V"]:
    """The logits of waves at 32 kHz, of at most `config.window_samples` and at least a second."""
    return Passt(config).apply({"params": params}, log_mel(waves))


def from_torch(state: Mapping[str, np.ndarray]) -> tuple[PasstConfig, Any]:
    """The config and the parameters from the state dict of its authors' PyTorch, as arrays. The second head, of distillation, is not used.

    Raises:
        KeyError, ValueError: it is another network's.
    """
    frequency, time = state["freq_new_pos_embed"][0, :, :, 0].T, state["time_new_pos_embed"][0, :, 0].T
    stride, num_layers = _MELS // len(frequency), 1 + max(int(name.split(".")[1]) for name in state if name.startswith("blocks."))
    dim, mlp_dim = frequency.shape[1], len(state["blocks.0.mlp.fc1.bias"])
    sizes = {"dim": dim, "num_layers": num_layers, "num_heads": max(1, dim // _HEAD_DIM), "mlp_dim": mlp_dim}
    ast = ASTConfig(max_frames=stride * len(time) + _PATCH - 1, patch_size=_PATCH, patch_stride=stride, **sizes)
    tokens = np.concatenate([state["cls_token"][0], state["dist_token"][0]]) + state["new_pos_embed"][0]
    layers = [_layer(state, f"blocks.{i}", ast.num_heads) for i in range(num_layers)]
    params = {
        "patches": {"kernel": state["patch_embed.proj.weight"].transpose(2, 3, 1, 0), "bias": state["patch_embed.proj.bias"]},
        "positions": frequency[:, None] + time,
        "tokens": tokens,
        "layers": jax.tree.map(lambda *leaves: np.stack(leaves), *layers),
        "final_norm": _norm(state, "norm"),
    }
    return PasstConfig(ast, len(state["head.1.bias"])), {"ast": params, "head_norm": _norm(state, "head.0"), "head": _dense(state, "head.1")}


def _layer(state: Mapping[str, np.ndarray], name: str, num_heads: int) -> dict[str, Any]:
    qkv, out = _dense(state, f"{name}.attn.qkv"), _dense(state, f"{name}.attn.proj")
    dim = len(out["kernel"])
    return {
        "attention_norm": _norm(state, f"{name}.norm1"),
        "attention": {
            "qkv_kernel": qkv["kernel"].reshape(dim, 3, num_heads, -1),
            "qkv_bias": qkv["bias"].reshape(3, num_heads, -1),
            "out_kernel": out["kernel"].reshape(num_heads, -1, dim),
            "out_bias": out["bias"],
        },
        "mlp_norm": _norm(state, f"{name}.norm2"),
        "widen": _dense(state, f"{name}.mlp.fc1"),
        "narrow": _dense(state, f"{name}.mlp.fc2"),
    }


def _norm(state: Mapping[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
    return {"scale": state[f"{name}.weight"], "bias": state[f"{name}.bias"]}


def _dense(state: Mapping[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
    return {"kernel": state[f"{name}.weight"].T, "bias": state[f"{name}.bias"]}


def variable_shapes(config: PasstConfig) -> Any:
    """The shapes of `params`."""
    mel = jax.ShapeDtypeStruct((1, _PATCH, _MELS), jnp.float32)
    return nn.unbox(jax.eval_shape(Passt(config).init, jax.eval_shape(lambda: jax.random.key(0)), mel)["params"])
