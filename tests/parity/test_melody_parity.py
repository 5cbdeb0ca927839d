"""The melody embedder against PyTorch's Transformer encoder, norms first, with the same random weights in float32."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_params import random_params

from musiclm_jax.audio.features import LogMelConfig, log_mel
from musiclm_jax.models import melody

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.parity

# PyTorch's heads must make up the width, which MusicLM's (6 x 64 of 512) do not: 4 of 3. test_melody.py has heads that do not, in NumPy.
CONFIG = melody.MelodyConfig(
    mel=LogMelConfig(sample_rate_hz=100, window_samples=40, hop_samples=20, num_fft=64, num_mels=11, max_hz=50.0),
    dim=12,
    num_layers=2,
    num_heads=4,
    head_dim=3,
    mlp_dim=17,
    embedding_dim=7,
    window_sec=2.6,
)


def encoder_of(params):
    dim, epsilon = CONFIG.dim, 1e-12
    layer = torch.nn.TransformerEncoderLayer(
        dim, CONFIG.num_heads, CONFIG.mlp_dim, dropout=0.0, activation="gelu", layer_norm_eps=epsilon, batch_first=True, norm_first=True
    )
    norm = torch.nn.LayerNorm(dim, eps=epsilon)
    encoder = torch.nn.TransformerEncoder(layer, CONFIG.num_layers, norm=norm, enable_nested_tensor=False)
    state = {"norm.weight": params["final_norm"]["scale"], "norm.bias": params["final_norm"]["bias"]}
    for i in range(CONFIG.num_layers):
        ours = jax.tree.map(lambda leaf: leaf[i], params["layers"])  # noqa: B023
        attention = ours["attention"]
        theirs = {
            "self_attn.in_proj_weight": attention["qkv_kernel"].reshape(dim, -1).T,
            "self_attn.in_proj_bias": attention["qkv_bias"].reshape(-1),
            "self_attn.out_proj.weight": attention["out_kernel"].reshape(-1, dim).T,
            "self_attn.out_proj.bias": attention["out_bias"],
            "norm1.weight": ours["attention_norm"]["scale"],
            "norm1.bias": ours["attention_norm"]["bias"],
            "linear1.weight": ours["widen"]["kernel"].T,
            "linear1.bias": ours["widen"]["bias"],
            "linear2.weight": ours["narrow"]["kernel"].T,
            "linear2.bias": ours["narrow"]["bias"],
            "norm2.weight": ours["mlp_norm"]["scale"],
            "norm2.bias": ours["mlp_norm"]["bias"],
        }
        state |= {f"layers.{i}.{name}": value for name, value in theirs.items()}
    encoder.load_state_dict({name: torch.tensor(np.array(value)) for name, value in state.items()})  # Strict: every weight is set.
    return encoder.eval()


def test_melody_embedder_against_torch():
    params = random_params(melody.init, CONFIG, jax.random.key(0))
    wave = jnp.asarray(np.random.default_rng(1).normal(size=(3, CONFIG.window_samples)), jnp.float32)
    # The front end is ours on both sides: test_features.py has it against librosa.
    mels = (np.array(log_mel(wave, CONFIG.mel)) - CONFIG.mel_mean) / CONFIG.mel_std
    with torch.no_grad():
        linear = lambda x, w: x @ torch.tensor(w["kernel"]) + torch.tensor(w["bias"])  # noqa: E731
        x = linear(torch.tensor(mels, dtype=torch.float32), params["frames"]) + torch.tensor(params["positions"])
        expected = torch.nn.functional.normalize(linear(encoder_of(params)(x).mean(1), params["out"]), dim=-1).numpy()
    for config in (CONFIG, dataclasses.replace(CONFIG, remat="full")):
        np.testing.assert_allclose(melody.embed(config, params, wave), expected, atol=1e-4, rtol=0)
