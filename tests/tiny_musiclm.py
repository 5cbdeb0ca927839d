"""A MusicLM with random weights, of the true rates and of the smallest sizes, for tests of everything around the models."""

import dataclasses

import jax
import numpy as np

from musiclm_jax.audio.features import LogMelConfig
from musiclm_jax.configs import MusicLMConfig
from musiclm_jax.generation.stages import StageSpec, musiclm_stages
from musiclm_jax.generation.timing import TimingConfig
from musiclm_jax.generation.voice import VoiceConfig
from musiclm_jax.models.melody import MelodyConfig
from musiclm_jax.models.mulan import MuLanConfig
from musiclm_jax.models.resnet import ResNetConfig
from musiclm_jax.models.soundstream import SoundStreamConfig
from musiclm_jax.models.stage import StageConfig
from musiclm_jax.models.text import TextTokenizer
from musiclm_jax.models.text_tower import TextTowerConfig
from musiclm_jax.models.w2v_bert import W2vBertConfig
from musiclm_jax.musiclm import MusicLM
from musiclm_jax.tokens import Levels

# Windows of 0.16 s, 0.12 s apart: all three fit into 0.4 s, the window of the semantic stage, and one into 0.2 s.
MELODY = MelodyConfig(
    mel=LogMelConfig(window_samples=240, hop_samples=240, num_fft=256, num_mels=8),
    dim=8,
    num_layers=1,
    num_heads=2,
    head_dim=4,
    mlp_dim=8,
    embedding_dim=5,
    num_levels=2,
    num_codes=17,
    window_sec=0.16,
    hop_sec=0.12,
)
CAPTIONS = ["a calm piano melody", "fast drums and bass", "a slow guitar tune in a minor key"]


def tiny_stages() -> tuple[StageSpec, ...]:
    """The paper's, with windows of 0.4 s, 0.2 s and 0.12 s."""
    model = StageConfig(dim=8, num_layers=1, num_heads=2, head_dim=4, mlp_dim=8)
    seconds = {"semantic": (0.4, 0.2), "coarse": (0.2, 0.12), "fine": (0.12, 0.12)}
    return tuple(
        dataclasses.replace(spec, model=model, window_sec=seconds[spec.name][0], hop_sec=seconds[spec.name][1]) for spec in musiclm_stages(coarse_levels=1)
    )


def tiny_config(**changes) -> MusicLMConfig:
    mel = LogMelConfig(window_samples=240, hop_samples=240, num_fft=256, num_mels=8)
    sizes = dict(
        codec=SoundStreamConfig(channels=2, decoder_channels=2, strides=(8, 60), dim=5, num_levels=3, num_codes=7, kernel_size=3, dilations=(1,)),
        w2v_bert=W2vBertConfig(
            mel=mel,
            conv_channels=(2, 2),
            dim=4,
            num_heads=2,
            mlp_dim=4,
            num_contrastive_layers=1,
            num_masked_layers=1,
            feature_layer=1,
            num_codes=5,
            code_dim=3,
            num_clusters=11,
        ),  # fmt: skip
        mulan=MuLanConfig(
            mel=mel,
            audio=ResNetConfig(depths=(1,), widths=(4,), bottleneck=False, strides=((2, 2),), stem_width=4, stem_kernel=(3, 3)),
            text=TextTowerConfig(vocab_size=197, max_tokens=9, dim=8, num_layers=1, num_heads=2, mlp_dim=8),
            embedding_dim=6,
            num_levels=2,
            num_codes=13,
            window_sec=0.5,
            hop_sec=0.1,
        ),
        stages=tiny_stages(),
    )
    return MusicLMConfig(**(sizes | changes))


def with_melody(*readers: str) -> MusicLMConfig:
    """With a melody embedder, whose tokens stand before the conditions of some stages."""
    reads = lambda spec: dataclasses.replace(spec, prefix=(Levels("melody"), *spec.prefix)) if spec.name in readers else spec  # noqa: E731
    return tiny_config(melody=MELODY, stages=tuple(map(reads, tiny_stages())))


def steerable() -> MusicLMConfig:
    """With endings and accompaniment: its semantic stage reads timing and a voice."""
    reads = lambda spec: dataclasses.replace(spec, prefix=(Levels("voice"), Levels("timing"), *spec.prefix)) if spec.name == "semantic" else spec  # noqa: E731
    return tiny_config(timing=TimingConfig(), voice=VoiceConfig(), stages=tuple(map(reads, tiny_stages())))


def tiny_musiclm(config: MusicLMConfig | None = None, *, rerankers: bool = False) -> MusicLM:
    config = config or tiny_config()
    rng = np.random.default_rng(0)
    # Not small: what a token or a word is has to change what comes out.
    draw = lambda leaf: rng.normal(scale=0.3 if leaf.ndim > 1 else 0.1, size=leaf.shape).astype(np.float32)  # noqa: E731
    names = (*config.models, *(("reranker", "semantic_reranker") if rerankers else ()))
    variables = {name: jax.tree.map(draw, config.variable_shapes(name)) for name in names}
    variables["codec"]["quantizer"] = {"codebooks": 3 * variables["codec"]["quantizer"]["codebooks"]}
    variables["w2v_bert"]["standardize"] = {"mean": np.zeros(config.w2v_bert.dim, np.float32), "matrix": np.eye(config.w2v_bert.dim, dtype=np.float32)}
    if rerankers:
        variables["semantic_reranker"]["spectra"] = 7 * variables["semantic_reranker"]["spectra"] - 3
    return MusicLM(config, variables, TextTokenizer.train(CAPTIONS, vocab_size=197))
