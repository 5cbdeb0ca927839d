"""A MusicLM with random weights, of the true rates and of the smallest sizes, for tests of everything around the models."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from random_params import random_params

from musiclm_jax.audio.features import LogMelConfig
from musiclm_jax.configs import MusicLMConfig
from musiclm_jax.models import mulan as mulan_lib
from musiclm_jax.models.mulan import MuLanConfig
from musiclm_jax.models.resnet import ResNetConfig
from musiclm_jax.models.soundstream import SoundStream, SoundStreamConfig
from musiclm_jax.models.stage import Stage, StageConfig
from musiclm_jax.models.text import TextTokenizer
from musiclm_jax.models.text_tower import TextTowerConfig
from musiclm_jax.models.w2v_bert import W2vBert, W2vBertConfig
from musiclm_jax.musiclm import MusicLM
from musiclm_jax.tokens import STAGES

CAPTIONS = ["a calm piano melody", "fast drums and bass", "a slow guitar tune in a minor key"]


def tiny_config(**changes) -> MusicLMConfig:
    mel = LogMelConfig(window_samples=240, hop_samples=240, num_fft=256, num_mels=8)
    stage = StageConfig(dim=8, num_layers=1, num_heads=2, head_dim=4, mlp_dim=8)
    sizes = dict(
        soundstream=SoundStreamConfig(
            channels=2, decoder_channels=2, strides=(8, 60), dim=5, num_levels=3, num_codes=7, kernel_size=3, dilations=(1,)
        ),
        w2v_bert=W2vBertConfig(
            mel=mel, conv_channels=(2, 2), dim=4, num_heads=2, mlp_dim=4, num_contrastive_layers=1, num_masked_layers=1, feature_layer=1,
            num_codes=5, code_dim=3, num_clusters=11,
        ),  # fmt: skip
        mulan=MuLanConfig(
            mel=mel,
            audio=ResNetConfig(depths=(1,), widths=(4,), bottleneck=False, strides=((2, 2),), stem_width=4, stem_kernel=(3, 3)),
            text=TextTowerConfig(vocab_size=64, max_tokens=9, dim=8, num_layers=1, num_heads=2, mlp_dim=8),
            embedding_dim=6,
            num_levels=2,
            num_codes=13,
            window_sec=0.5,
            hop_sec=0.1,
        ),
        coarse_levels=1,
        semantic=stage,
        coarse=stage,
        fine=stage,
    )
    return MusicLMConfig(**(sizes | changes))


def tiny_musiclm(config: MusicLMConfig | None = None) -> MusicLM:
    config = config or tiny_config()
    rng, codec, w2v, mulan = np.random.default_rng(0), config.soundstream, config.w2v_bert, config.mulan
    normal = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
    params = functools.partial(random_params, scale=0.3, generator=rng)
    key, wave = jax.random.key(0), jnp.zeros((1, 1920))

    w2v_args = dict(mask=jnp.zeros((1, 2), bool), rng=key, temperature=1.0, train=False)
    variables = {
        "soundstream": {
            "params": params(SoundStream(codec).init, key, wave),
            "quantizer": {"codebooks": normal(codec.num_levels, codec.num_codes, codec.dim)},
        },
        "w2v_bert": {
            "params": params(W2vBert(w2v).init, key, wave, **w2v_args),
            "standardize": {"mean": np.zeros(w2v.dim, np.float32), "matrix": np.eye(w2v.dim, dtype=np.float32)},
            "kmeans": {"centroids": normal(w2v.num_clusters, w2v.dim)},
        },
        "mulan": {
            "params": params(mulan_lib.init, mulan, key),
            "quantizer": {
                "audio_mean": np.zeros(mulan.embedding_dim, np.float32),
                "text_mean": np.zeros(mulan.embedding_dim, np.float32),
                "codebooks": normal(mulan.num_levels, mulan.num_codes, mulan.embedding_dim),
            },
        },
    }
    for name in STAGES:
        layout = config.layout(name)
        prefix, codes = jnp.zeros((1, 3), jnp.int32), jnp.zeros((1, 2, layout.target.levels), jnp.int32)
        variables[name] = {"params": params(Stage(config.stage(name), layout).init, key, prefix, codes)}
    return MusicLM(config, variables, TextTokenizer.train(CAPTIONS, vocab_size=60))
