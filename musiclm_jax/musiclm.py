"""MusicLM (arXiv 2301.11325): a bundle of trained models, and music from text with them."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from musiclm_jax import audio, bundle, pretrained
from musiclm_jax.arrays import Float, Int
from musiclm_jax.configs import RERANKERS, MusicLMConfig
from musiclm_jax.errors import UserError
from musiclm_jax.generation import selection
from musiclm_jax.generation.devices import Weights
from musiclm_jax.generation.melody import Melody, melody_codes, melody_seconds, no_melody, read_melody
from musiclm_jax.generation.request import Music, check_request, clip_keys, resolve_sampling
from musiclm_jax.generation.sampler import Keys, SamplingConfig
from musiclm_jax.generation.stages import StageSpec, generate_stage, required_steps
from musiclm_jax.models.stage import StageDecoder
from musiclm_jax.models.text import TextTokenizer
from musiclm_jax.models.tokenizers import AcousticTokenizer, MelodyTokenizer, MuLanTokenizer, SemanticTokenizer
from musiclm_jax.progress import OnProgress
from musiclm_jax.tokens import StageLayout


class MusicLM:
    """The trained models of a bundle, and the generation of music from text with them. No method changes what another returns.

    Attributes: config: MusicLMConfig. text: the text vocabulary. acoustic, semantic, mulan: the frozen models (models/tokenizers.py).
    """

    def __init__(self, config: MusicLMConfig, variables: Mapping[str, Any], text: TextTokenizer, *, source: bundle.Bundle | None = None):
        """variables: {model name: nested dict of arrays}, as in the bundle's files. source: the bundle from which missing ones are read on first use."""
        missing = [name for name in config.models if name not in variables]
        if missing and source is None:
            raise ValueError(f"expected variables of {', '.join(config.models)}; {', '.join(missing)} missing")
        self.config = config
        self.text = text
        self._variables = dict(variables)
        self._source = source
        self._on_device: dict[str, Any] = {}
        self._prepared: dict[str, Weights] = {}

    # ------------------------------------------------------------------------------------------------ bundles

    @classmethod
    def from_pretrained(cls, path: str | os.PathLike) -> MusicLM:
        """Loads a bundle: a folder, or "demo", the small model that is packaged.

        Raises:
            UserError: the folder is missing, is not a bundle, has another format, or is damaged. The message names the file and the remedy.
        """
        opened = pretrained.open_pretrained(path)
        config = pretrained.read_config(opened)
        needed = ["codec", "mulan", *(stage.name for stage in config.stages if stage.name not in config.skipped_stages)]
        variables = {name: pretrained.load(opened, config, name) for name in needed}
        return cls(config, variables, pretrained.load_vocabulary(opened), source=opened)

    def save_pretrained(self, path: str | os.PathLike, *, dtype: str = "float32", card: str | None = None) -> None:
        """Writes a bundle to the folder `path`, whole or not at all; an older bundle there is replaced.

        Args:
            path: the folder.
            dtype: of the stored weights; "float16" halves the size at the cost of rounding. Loaded weights are float32 either way.
            card: the model card, Markdown. None: a short one made from the config.
        """
        bundle.save(
            path,
            config=self.config.to_dict(),
            models={name: self.variables(name) for name in self.models},
            metadata={"mulan": {pretrained.VOCABULARY: self.text.to_json()}},
            card=self._card() if card is None else card,
            dtype=dtype,
        )

    def _card(self) -> str:
        lines = [f"| {name} | {pretrained.millions(self.variables(name))} |" for name in self.models]
        return "\n".join(
            [
                *bundle.CARD_HEAD,
                'Load it with `MusicLM.from_pretrained("this folder")`, or `musiclm generate "..." --model THIS_FOLDER`.',
                "",
                "| model | parameters |",
                "|---|---|",
                *lines,
                "",
                "Data, licence, uses and limits: to be filled in by whoever trained it.",
                "",
            ]
        )

    # ----------------------------------------------------------------------------------------------- models

    @property
    def models(self) -> tuple[str, ...]:
        """Names of the models that the bundle contains."""
        return (*self.config.models, *(name for name in RERANKERS if self.has(name)))

    def has(self, name: str) -> bool:
        return name in self._variables or (self._source is not None and f"{name}.safetensors" in self._source.files)

    def variables(self, name: str) -> dict[str, Any]:
        """The weights of one model, on the device."""
        if name not in self._on_device:
            if name not in self._variables:
                self._variables[name] = pretrained.load(self._source, self.config, name)
            self._on_device[name] = jax.device_put(self._variables[name])
        return self._on_device[name]

    @functools.cached_property
    def acoustic(self) -> AcousticTokenizer:
        return AcousticTokenizer(self.config.codec, self.variables("codec"))

    @functools.cached_property
    def semantic(self) -> SemanticTokenizer:
        return SemanticTokenizer(self.config.w2v_bert, self.variables("w2v_bert"))

    @functools.cached_property
    def mulan(self) -> MuLanTokenizer:
        return MuLanTokenizer(self.config.mulan, self.variables("mulan"), self.text)

    @functools.cached_property
    def melody(self) -> MelodyTokenizer:
        """The melody embedder. UserError in a bundle without one."""
        self.config.check_melody()
        return MelodyTokenizer(self.config.melody, self.variables("melody"))

    @functools.cached_property
    def reranker(self) -> MuLanTokenizer:
        """A MuLan trained on decoded clips (`fit` trains it), which scores candidates together with `mulan`. In a bundle without one, `mulan` itself."""
        return MuLanTokenizer(self.config.mulan, self.variables("reranker"), self.text) if self.has("reranker") else self.mulan

    @functools.cached_property
    def semantic_reranker(self) -> MuLanTokenizer:
        """A MuLan that reads semantic tokens (`embed_semantic`) and scores drafts. UserError in a bundle without it."""
        if not self.has("semantic_reranker"):
            raise UserError("the model has no semantic_reranker, which scores drafts; set num_drafts to 1, or make the bundle with `musiclm fit`")
        return MuLanTokenizer(self.config.mulan, self.variables("semantic_reranker"), self.text)

    # ------------------------------------------------------------------------------------------- generation

    def generate(
        self,
        prompts: Sequence[str],
        *,
        seconds: float | int = 10.0,
        seed: int = 0,
        num_samples: int = 1,
        num_candidates: int | None = None,
        num_drafts: int | None = None,
        melody: Melody | None = None,
        sampling: Mapping[str, SamplingConfig | Mapping[str, float | int]] | None = None,
        on_progress: OnProgress | None = None,
    ) -> Music:
        """Music for each prompt (arXiv 2301.11325, section 3.2): text -> MuLan tokens -> semantic -> coarse -> fine -> wave, at -14 LUFS.

        A clip depends on its prompt, the seed and its number among the samples of that prompt. It does not depend on the other clips of the call, up
        to rounding, which may differ with the batch size. With one candidate and one draft a clip is the beginning of any longer clip with the same
        arguments, up to the one gain that normalizes the loudness of each.

        Args:
            prompts: descriptions of the music. Those longer than the text tower's context are truncated (`mulan.truncated` lists which).
            seconds: length of each clip, up to 300.
            seed: 0 to 2^32 - 1.
            num_samples: clips per prompt.
            num_candidates: clips generated per sample, up to the coarse levels. Only the best one is kept: that with the highest sum of cosine
                similarities to the prompt, in the embeddings of `reranker` and of `mulan`. None: the model's default.
            num_drafts: semantic token sequences drawn per candidate. Every `draft_sec`, `semantic_reranker` scores their last MuLan windows against
                the prompt, and the best `num_candidates` are continued. None: the model's default.
            melody: what all clips follow: a file; a wave [N] at 24 kHz; or (wave, its rate in Hz). It is aligned with the music from its start on; where it
                ends, the music goes on without. None: no melody.
            sampling: {stage: a SamplingConfig, or a dict of its fields to change, such as {"temperature": 0.9}}.
            on_progress: called as on_progress(stage, tokens done, tokens in all).

        Raises:
            UserError: an empty prompt, or a number out of range; a melody where the model follows none, or one that cannot be read, is silent or too short.
        """
        request = {"seconds": seconds, "seed": seed, "num_samples": num_samples}
        check_request(prompts, **request, num_candidates=num_candidates, num_drafts=num_drafts)
        tries = self.config.selection.replace(num_candidates=num_candidates, num_drafts=num_drafts)
        check_request(prompts, **request, num_candidates=tries.num_candidates, num_drafts=tries.num_drafts)
        stages = [stage for stage in self.config.stages if stage.name not in self.config.skipped_stages]
        sampling = resolve_sampling({stage.name: stage.sampling for stage in self.config.stages}, sampling)
        for stage in stages:
            stage.check_sampling(sampling[stage.name])
        layouts = [(stage, stage.layout(self.config.streams)) for stage in stages]
        steps = required_steps(layouts, seconds=seconds)
        tune = None if melody is None else self._read_melody(melody, layouts, steps)

        clips = selection.repeat(prompts, num_samples)  # The prompt of each clip.
        ways = tries.num_candidates * tries.num_drafts
        keys = clip_keys(selection.repeat(map(self.text.normalize, clips), ways), seed=seed)
        streams = {"mulan": np.repeat(self.mulan.text_tokens(prompts), num_samples * ways, axis=0)}
        drafts, candidates = tries.num_drafts > 1, tries.num_candidates > 1
        for stage in stages:
            if stage.reads("melody"):
                streams = streams | {"melody": np.repeat(self._melody_codes(tune, stage, steps[stage.name]), len(keys), axis=0)}
            draw = functools.partial(self.draw_stage, stage, sampling=sampling[stage.name])
            if drafts and stage.target.stream == "semantic":
                asked = min(steps[stage.name], self.config.audio.semantic_tokens(seconds))
                how = {"config": tries, "spec": self.config.audio, "steps": steps[stage.name], "asked": asked, "on_progress": on_progress}
                codes, rows = selection.choose_drafts(draw, self.semantic_reranker, streams, keys, clips, **how)
                streams, keys, drafts = _take(streams, rows), keys[rows], False
            else:
                codes = draw(streams, steps=steps[stage.name], keys=keys, on_progress=on_progress)
            streams = _written(streams, stage, codes)
            if candidates and stage.target.stream == "acoustic":
                judges = list(dict.fromkeys((self.reranker, self.mulan)))  # Without a reranker these are one.
                rows = selection.choose_candidates(judges, self.play(streams["acoustic"], seconds=seconds), clips)
                streams, keys, candidates = _take(streams, rows), keys[rows], False
        return Music(self.play(streams["acoustic"], seconds=seconds), self.config.audio.sample_rate_hz, tuple(clips))

    def _read_melody(self, melody: Melody, stages: Sequence[tuple[StageSpec, StageLayout]], steps: dict[str, int]) -> Float[np.ndarray, "N"]:
        self.config.check_melody()
        return read_melody(melody, self.config.melody, seconds=melody_seconds(self.config.melody, stages, steps))

    def _melody_codes(self, wave: Float[np.ndarray, "N"] | None, stage: StageSpec, steps: int) -> Int[np.ndarray, "1 ..."]:
        """The melody tokens of a stage, a row [S, W, Q] for its windows. wave: None: no melody, a row [W, Q]."""
        if wave is None:
            return no_melody(self.config.melody)
        return melody_codes(self.melody, wave, stage, stage.layout(self.config.streams), steps=steps)[None]

    def draw_stage(
        self,
        stage: StageSpec,
        streams: Mapping[str, np.ndarray],
        *,
        steps: int,
        keys: Keys,
        sampling: SamplingConfig | None = None,
        prompt: Int[np.ndarray, "G n Q"] | None = None,
        on_progress: OnProgress | None = None,
    ) -> Int[np.ndarray, "B T Q"]:
        """Draws the codes of one stage: `generation.stages.generate_stage` with this model's weights. Progress counts the tokens of all clips."""
        decoder = StageDecoder(stage.model, stage.layout(self.config.streams))
        if stage.name not in self._prepared:  # Once: the weights in the layout of the decoder.
            self._prepared[stage.name] = Weights(decoder.prepare(self.variables(stage.name)["params"]))
        total = len(keys) * steps * decoder.layout.target.levels
        if on_progress and prompt is None:
            on_progress(stage.name, 0, total)
        return generate_stage(
            stage,
            decoder,
            self._prepared[stage.name],
            streams,
            steps=steps,
            keys=keys,
            sampling=sampling,
            prompt=prompt,
            on_progress=on_progress and (lambda done, of: on_progress(stage.name, total * done // of, total)),
        )

    def play(self, codes: Int[np.ndarray, "B T q"], *, seconds: float | int) -> Float[np.ndarray, "B N"]:
        """Decodes acoustic codes to the first `seconds` of their waves, each normalized to -14 LUFS."""
        rate = self.config.audio.sample_rate_hz
        samples = max(1, round(seconds * rate))
        wave = self.acoustic.decode(codes[:, : -(-samples // self.config.audio.frame_samples)])[:, :samples]
        return np.stack([audio.normalize_loudness(clip, sample_rate_hz=rate) for clip in wave])


def _take(streams: Mapping[str, np.ndarray], rows: Int[np.ndarray, "k"]) -> dict[str, np.ndarray]:
    return {name: stream[rows] for name, stream in streams.items()}


def _written(streams: Mapping[str, np.ndarray], stage: StageSpec, codes: Int[np.ndarray, "B T Q"]) -> dict[str, np.ndarray]:
    """Adds the codes of a stage to the streams: as a new stream, or as further levels of an existing one."""
    before = [streams[stage.target.stream][:, : codes.shape[1]]] if stage.target.stream in streams else []
    return {**streams, stage.target.stream: np.concatenate([*before, codes], axis=2)}
