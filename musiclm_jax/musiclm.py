"""MusicLM (arXiv 2301.11325): a bundle of trained models, and music from text with them."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from musiclm_jax import bundle, pretrained
from musiclm_jax.arrays import Float, Int
from musiclm_jax.configs import RERANKERS, MusicLMConfig
from musiclm_jax.errors import UserError
from musiclm_jax.generation.beginning import read_beginning, read_notes
from musiclm_jax.generation.devices import Weights
from musiclm_jax.generation.melody import no_melody, read_melody
from musiclm_jax.generation.recording import Recording, read_recording
from musiclm_jax.generation.request import Music, check_request, resolve_sampling
from musiclm_jax.generation.sampler import Keys, SamplingConfig
from musiclm_jax.generation.selection import Prefer, SelectionConfig
from musiclm_jax.generation.stages import StageSpec, generate_stage
from musiclm_jax.generation.stream import Ensemble, Given, MusicStream, StageAtWork
from musiclm_jax.generation.timing import given_timing
from musiclm_jax.generation.voice import GivenVoice, read_voice
from musiclm_jax.generation.wishes import Story, make_script
from musiclm_jax.models.stage import StageDecoder
from musiclm_jax.models.text import TextTokenizer
from musiclm_jax.models.tokenizers import AcousticTokenizer, MelodyTokenizer, MuLanTokenizer, SemanticTokenizer
from musiclm_jax.progress import OnProgress

# Of a melody or voice that endless music follows.
_LONGEST_SEC = 3600


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
        prompts: Sequence[str | None] = (),
        *,
        seconds: float | int = 10.0,
        seed: int = 0,
        num_samples: int = 1,
        num_candidates: int | None = None,
        num_drafts: int | None = None,
        sampling: Mapping[str, SamplingConfig | Mapping[str, float | int]] | None = None,
        story: Story | None = None,
        fade: float | int = 0,
        without: Sequence[str] = (),
        melody: Recording | None = None,
        ending: bool = False,
        prefer: Prefer | None = None,
        on_progress: OnProgress | None = None,
    ) -> Music:
        """Music for each prompt (arXiv 2301.11325, section 3.2): text -> MuLan tokens -> semantic -> coarse -> fine -> wave, at -14 LUFS.

        A clip depends on its prompt, the seed and its number among the samples of that prompt. It does not depend on the other clips of the call, up
        to rounding, which may differ with the batch size. With one draft a clip is the beginning of any longer clip with the same arguments, if both have at
        least 10 s or there is one candidate.

        Args:
            prompts: descriptions of the music. Those longer than the text tower's context are truncated (`mulan.truncated` lists which). A mixture of
                prompts is "0.7: calm piano | 0.3: techno". None: any music (AudioLM, arXiv 2209.03143, section IV-B), of one candidate and one draft.
            seconds: length of each clip, up to 300. `stream` has no limit.
            seed: 0 to 2^32 - 1.
            num_samples: clips per prompt.
            num_candidates: clips generated per sample, up to the coarse levels of their first 10 s. Only the best one goes on: that with the highest sum of
                cosine similarities to the prompt, in the embeddings of `reranker` and of `mulan`. None: the model's default.
            num_drafts: semantic token sequences drawn per candidate. Every `draft_sec`, `semantic_reranker` scores their last MuLan windows against
                the prompt, and the best `num_candidates` are continued. None: the model's default.
            sampling: {stage: a SamplingConfig, or a dict of its fields to change, such as {"temperature": 0.9}}.
            story: prompts with the second from which on each holds, instead of `prompts`: [(0, "time to meditate"), (15, "time to wake up")] (section 4.3).
            fade: seconds in which one line of the story goes over to the next, half of them before its time.
            without: what should not be heard, such as ["drums"] (`generation/wishes.py`).
            melody: what all clips follow: a file; a wave [N] at 24 kHz; or (wave, its rate in Hz). It is aligned with the music from its start on; where it
                ends, the music goes on without. None: no melody.
            ending: whether the music is a piece that ends by itself after `seconds`, which should be no fewer than a window of its stages.
            prefer: a score of a wave at 24 kHz, which counts in the choice among candidates beside their cosine similarities, such as that of exact wishes
                (`evaluation/exact.py`).
            on_progress: called as on_progress(stage, tokens done, tokens in all).

        Raises:
            UserError: an empty prompt, a number out of range, or a story whose times do not rise from 0; a melody where the model follows none, or one that
                cannot be read, is silent or too short; an ending where the model reads no timing.
        """
        request = {"seconds": seconds, "seed": seed, "num_samples": num_samples}
        tries = self.config.selection.replace(num_candidates=num_candidates, num_drafts=num_drafts)
        tries = tries.replace(num_candidates=1, num_drafts=1) if any(prompt is None for prompt in prompts) else tries  # By a prompt.
        for few in ({"num_candidates": num_candidates, "num_drafts": num_drafts}, {"num_candidates": tries.num_candidates, "num_drafts": tries.num_drafts}):
            check_request(prompts if story is None else [text for _, text in story], **request, **few)
        script = make_script(prompts, story, without=without, fade=fade, num_samples=num_samples, seconds=seconds)
        models = self._ensemble(tries, sampling, self._given(melody, seconds, ending), prefer)
        stream = MusicStream(models, script, seed=seed, seconds=seconds, tries=tries, ending=ending, on_progress=on_progress)
        return Music(np.concatenate(list(stream), axis=1), self.config.audio.sample_rate_hz, tuple(wish.text for wish in script[0][1]))

    def stream(
        self,
        prompt: str | None = None,
        *,
        seconds: float | int | None = None,
        seed: int = 0,
        num_candidates: int | None = None,
        num_drafts: int | None = None,
        sampling: Mapping[str, SamplingConfig | Mapping[str, float | int]] | None = None,
        story: Story | None = None,
        fade: float | int = 0,
        without: Sequence[str] = (),
        sample: int = 0,
        melody: Recording | None = None,
        prefer: Prefer | None = None,
        like: Recording | None = None,
        beginning: Recording | None = None,
        resynthesize: Recording | None = None,
        voice: Recording | None = None,
        ending: bool = False,
        on_progress: OnProgress | None = None,
    ) -> MusicStream:
        """Music of one clip, piece by piece, in constant memory: an iterator over waves float32 [1, n], whose `prompt` may be set on the way.

        The pieces are those of `generate` with the same arguments.

        Args:
            seconds: None: without end.
            sample: which of the samples that `generate` makes of the prompt, from 0 on.
            melody: as in `generate`; of an endless stream, its first hour.
            like: a recording that conditions the music instead of a prompt, by MuLan's embedding of audio. As all recordings: a file, a wave [N] at 24 kHz, or
                (wave, its rate in Hz).
            beginning: a recording that the music continues (AudioLM, arXiv 2209.03143, section III-D). It is the beginning of the result, and in `seconds`.
                Without a prompt it conditions the music, too.
            ending: as in `generate`; it needs `seconds`.
            voice: what the music accompanies (SingSong, arXiv 2301.12662), as `melody`; of an endless stream, its first hour. See `accompany`. Without a
                prompt it conditions the music, too.
            resynthesize: a recording whose semantic tokens the music has, and with them its notes, with new acoustic tokens (AudioLM, section IV-B). The
                result is as long. Without a prompt it conditions the music, too.

        Raises:
            UserError: as `generate`; a recording is too short; `seconds` are not longer than the beginning.
        """
        if voice is not None:
            self.config.check_voice()
            voice = read_voice(voice, self.config.audio, seconds=_LONGEST_SEC if seconds is None else seconds)
        like, beginning, resynthesize = (None if each is None else self._read(each) for each in (like, beginning, resynthesize))
        recordings = [wave for wave in (like, beginning, resynthesize, voice) if wave is not None]
        tries = self.config.selection.replace(num_candidates=num_candidates, num_drafts=num_drafts)
        tokens, texts = None, [prompt] if story is None else [text for _, text in story]
        if prompt is None and story is None:
            tries = tries.replace(num_candidates=1, num_drafts=1)  # They are chosen by a prompt.
            tokens = self.mulan.audio_tokens(recordings[0][None]) if recordings else None
        few = {"num_candidates": tries.num_candidates, "num_drafts": tries.num_drafts}
        check_request(texts, seconds=1 if seconds is None else min(seconds, 1), seed=seed, **few)
        begun = None if beginning is None else read_beginning(beginning, self.config.audio, self.semantic, self.acoustic, seconds=seconds)
        if resynthesize is not None:
            begun, seconds = read_notes(resynthesize, self.semantic), len(resynthesize) / self.config.audio.sample_rate_hz
        script = make_script([prompt] if story is None else [], story, without=without, fade=fade, seconds=seconds)
        options = {"seed": seed, "seconds": seconds, "sample": sample, "tries": tries, "ending": ending, "on_progress": on_progress}
        given = self._given(melody, seconds, ending, voice)
        return MusicStream(self._ensemble(tries, sampling, given, prefer), script, mulan_tokens=tokens, beginning=begun, **options)

    def accompany(self, voice: Recording, prompt: str | None = None, **options: Any) -> Float[np.ndarray, "N"]:
        """The band that accompanies a voice, as long as the voice, without it: `generation.voice.mix` mixes both. Without a prompt the voice conditions it.

        Args:
            voice: a file; a wave [N] at 24 kHz; or (wave, its rate in Hz).
            options: those of `stream`.

        Raises:
            UserError: as `stream`; the voice cannot be read, is silent or shorter than 1 s, or the model accompanies none.
        """
        self.config.check_voice()
        rate = self.config.audio.sample_rate_hz
        wave = read_voice(voice, self.config.audio, seconds=_LONGEST_SEC)
        return np.concatenate(list(self.stream(prompt, voice=wave, **{"seconds": len(wave) / rate} | options)), axis=1)[0]

    def _read(self, recording: Recording) -> Float[np.ndarray, "N"]:
        """A whole recording at the model's rate."""
        spec = self.config.audio
        return read_recording(recording, "recording", rate=spec.sample_rate_hz, least=spec.semantic_samples, seconds=None)

    def _given(self, melody: Recording | None, seconds: float | int | None, ending: bool, voice: Float[np.ndarray, "N"] | None = None) -> dict[str, Given]:
        """The tokens of the optional streams that the stages read."""
        if ending:
            self.config.check_timing()
        given = {} if self.config.melody is None and melody is None else {"melody": self._melody_tokens(melody, seconds)}
        if self.config.voice is not None:
            given["voice"] = GivenVoice(self.config.voice, self.config.audio, lambda wave: self.semantic.encode(wave), voice)
        return given | given_timing(self.config.timing, ending=ending, seconds=seconds)

    def _melody_tokens(self, melody: Recording | None, seconds: float | int | None) -> Given:
        if melody is None:
            return lambda stage, start_sec: no_melody(self.config.melody)
        longest = max(stage.window_sec for stage in self.config.stages)
        embedder = self.melody
        wave = read_melody(melody, self.config.melody, seconds=(_LONGEST_SEC if seconds is None else seconds) + longest)
        return lambda stage, start_sec: embedder.encode(wave, [start_sec], window_sec=stage.window_sec)

    def _ensemble(self, tries: SelectionConfig, sampling: Mapping[str, Any] | None, given: Mapping[str, Given], prefer: Prefer | None) -> Ensemble:
        resolved = resolve_sampling({stage.name: stage.sampling for stage in self.config.stages}, sampling)
        at_work = []
        for stage in self.config.stages:
            if stage.name not in self.config.skipped_stages:
                stage.check_sampling(resolved[stage.name])
                at_work.append(StageAtWork(stage, *self._decoder(stage), resolved[stage.name]))
        judges = tuple(dict.fromkeys((self.reranker, self.mulan))) if tries.num_candidates > 1 else ()  # Without a reranker these are one.
        return Ensemble(
            audio=self.config.audio,
            stages=tuple(at_work),
            mulan=self.mulan,
            acoustic=self.acoustic,
            given=given,
            judges=judges,
            prefer=prefer,
            draft_judge=self.semantic_reranker if tries.num_drafts > 1 else None,
        )

    def _decoder(self, stage: StageSpec) -> tuple[StageDecoder, Weights]:
        """The model of a stage, and its weights in the layout of the decoder, which are made once."""
        decoder = StageDecoder(stage.model, stage.layout(self.config.streams))
        if stage.name not in self._prepared:
            self._prepared[stage.name] = Weights(decoder.prepare(self.variables(stage.name)["params"]))
        return decoder, self._prepared[stage.name]

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
        decoder, weights = self._decoder(stage)
        total = len(keys) * steps * decoder.layout.target.levels
        if on_progress and prompt is None:
            on_progress(stage.name, 0, total)
        return generate_stage(
            stage,
            decoder,
            weights,
            streams,
            steps=steps,
            keys=keys,
            sampling=sampling,
            prompt=prompt,
            on_progress=on_progress and (lambda done, of: on_progress(stage.name, total * done // of, total)),
        )
