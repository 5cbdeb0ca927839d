"""The Audio Spectrogram Transformer of transformers and MuLan's second audio tower."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from musiclm_jax.models.ast import AST, ASTConfig

torch = pytest.importorskip("torch")
reference_ast = pytest.importorskip("transformers.models.audio_spectrogram_transformer.modeling_audio_spectrogram_transformer")

import torch_weights as weights  # noqa: E402

pytestmark = pytest.mark.parity

MELS = 13
TINY = ASTConfig(max_frames=31, patch_size=5, patch_stride=3, dim=18, num_layers=2, num_heads=3, mlp_dim=29)


def reference_config(config, num_mels):
    return reference_ast.ASTConfig(
        max_length=config.max_frames,
        num_mel_bins=num_mels,
        patch_size=config.patch_size,
        frequency_stride=config.patch_stride,
        time_stride=config.patch_stride,
        hidden_size=config.dim,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        intermediate_size=config.mlp_dim,
    )


def test_mean_of_the_two_tokens():
    """What the tower returns is the reference's pooled output; the last bins and frames, which no whole patch covers, are left out alike."""
    reference = weights.randomize(reference_ast.ASTModel(reference_config(TINY, MELS)))
    params = weights.to_jax(weights.ast(reference))
    mels = np.random.default_rng(0).normal(size=(2, TINY.max_frames, MELS)).astype(np.float32)
    expected = reference(input_values=torch.tensor(mels)).pooler_output.numpy()
    ours = jax.jit(AST(TINY, jnp.dtype("float32")).apply)({"params": params}, jnp.asarray(mels))
    np.testing.assert_allclose(ours, expected, atol=1e-5, rtol=0)
    assert np.abs(expected).mean() > 0.3


@pytest.mark.parametrize("max_frames", [1000, 1024])
def test_the_papers_size(max_frames):
    """1000 frames are MuLan's. 1024 are those of the published AudioSet model, whose weights thus fit."""
    config = ASTConfig(max_frames=max_frames)
    with torch.device("meta"):
        reference = reference_ast.ASTModel(reference_config(config, 128))
    weights.assert_same_shapes(weights.ast(reference), AST(config, jnp.dtype("float32")), jnp.zeros((1, 16, 128)))
