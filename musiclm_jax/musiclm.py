"""MusicLM (arXiv 2301.11325): a bundle of trained models, and music from text with them."""

from __future__ import annotations

import collections
import dataclasses
import functools
import math
import os
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from musiclm_jax import audio, bundle
from musiclm_jax.arrays import Array, Float, Int
from musiclm_jax.configs import MusicLMConfig
from musiclm_jax.errors import UserError
from musiclm_jax.generation import stages as windows
from musiclm_jax.generation.sampler import SamplingConfig
from musiclm_jax.models.stage import StageDecoder
from musiclm_jax.models.text import TextTokenizer
from musiclm_jax.models.tokenizers import AcousticTokenizer, MuLanTokenizer, SemanticTokenizer
from musiclm_jax.progress import OnProgress
from musiclm_jax.tokens import STAGES

# The files of a bundle, without w2v_bert, which only encodes: text-to-music does not read it.
GENERATIVE = ("soundstream", "mulan", *STAGES)
MODELS = ("w2v_bert", *GENERATIVE)
MAX_SECONDS = 300
_BUNDLES = Path(__file__).parent / "bundles"
_VOCABULARY = "vocabulary"


@dataclasses.dataclass(frozen=True)
class Music:
    """Clips. Unpacks as (wave, sample_rate_hz).

    Fields: wave: float32 [B, N] in [-1, 1], all samples of the first prompt, then of the second, ... prompts: the prompt of each row.
    """

    wave: np.ndarray
    sample_rate_hz: int
    prompts: tuple[str, ...]

    def __iter__(self) -> Iterator:
        return iter((self.wave, self.sample_rate_hz))


def check_request(
    prompts: Sequence[str],
    *,
    seconds: float | int,
    seed: int = 0,
    num_samples: int = 1,
    num_candidates: int | None = None,
    num_drafts: int | None = None,
    sampling: Mapping[str, Any] | None = None,
) -> None:
    """Raises UserError for what no model can do. The arguments are those of `MusicLM.generate`."""
    if isinstance(prompts, str):
        raise ValueError(f"expected a list of prompts, got one string: pass [{prompts!r}]")
    if not prompts:
        raise UserError("there is no prompt; describe the music in a few words, such as 'a calm piano melody'")
    for number, prompt in enumerate(prompts, start=1):
        if not prompt.strip():
            raise UserError(f"prompt {number} is empty; describe the music in a few words, such as 'a calm piano melody'")
    if not 0 < seconds <= MAX_SECONDS:  # Neither is nan.
        raise UserError(f"seconds={seconds:g}: choose a number above 0 and up to {MAX_SECONDS}")
    if num_samples < 1:
        raise UserError(f"samples={num_samples}: choose 1 or more")
    for name, number in (("candidates", num_candidates), ("drafts", num_drafts)):
        if number is not None and number < 1:
            raise UserError(f"{name}={number}: choose 1 (no choice) or more")
    if not 0 <= seed < 2**32:
        raise UserError(f"seed={seed}: choose a whole number from 0 to {2**32 - 1}")
    resolve_sampling({name: SamplingConfig() for name in STAGES}, sampling)


def resolve_sampling(defaults: Mapping[str, SamplingConfig], overrides: Mapping[str, Any] | None) -> dict[str, SamplingConfig]:
    """Each stage's SamplingConfig: the default, or what `overrides` has for the stage: a SamplingConfig, or a dict of the fields to change."""
    resolved = dict(defaults)
    for stage, override in (overrides or {}).items():
        if stage not in resolved:
            raise UserError(f"sampling of {stage!r}: choose one of {', '.join(resolved)}")
        if not isinstance(override, SamplingConfig):
            override = dataclasses.replace(resolved[stage], **{name: _sampling_number(stage, name, value) for name, value in override.items()})
        resolved[stage] = override
    return resolved


def _sampling_number(stage: str, name: str, value: float | int) -> float | int:
    fields = {field.name: type(field.default) for field in dataclasses.fields(SamplingConfig)}
    if name not in fields:
        raise UserError(f"sampling of {stage} has no {name!r}: choose from {', '.join(fields)}")
    if not math.isfinite(value) or fields[name](value) != value:
        raise UserError(f"{name}={value} of the {stage} stage: choose a {'whole' if fields[name] is int else 'finite'} number")
    return fields[name](value)


class MusicLM:
    """The six trained models and what connects them. Its methods change nothing.

    Attributes: config: MusicLMConfig. text: the text vocabulary. acoustic, semantic, mulan: the frozen models (tokenizers.py).
    """

    def __init__(self, config: MusicLMConfig, variables: Mapping[str, Any], text: TextTokenizer, *, source: bundle.Bundle | None = None):
        """variables: {model name: nested dict of arrays}, as in the bundle's files. source: where those that it lacks are read when needed."""
        missing = [name for name in MODELS if name not in variables]
        if missing and source is None:
            raise ValueError(f"variables of {', '.join(MODELS)} are expected; {', '.join(missing)} not there")
        self.config = config
        self.text = text
        self._variables = dict(variables)
        self._source = source
        self._on_device: dict[str, Any] = {}

    def variables(self, name: str) -> dict[str, Any]:
        """The weights of one model, on the device."""
        if name not in self._on_device:
            variables = self._variables[name] if name in self._variables else self._source.load(name)[0]
            self._on_device[name] = jax.device_put(variables)
        return self._on_device[name]

    # ------------------------------------------------------------------------------------------------ bundles

    @classmethod
    def from_pretrained(cls, path: str | os.PathLike) -> MusicLM:
        """Loads a bundle: a folder, or "demo", the small model that is packaged.

        Raises:
            UserError: it is not there, not a bundle, of a newer format, or damaged. The message names the file and the remedy.
        """
        opened = open_pretrained(path)
        config = _config(opened)
        variables, metadata = {}, {}
        for name in GENERATIVE:
            variables[name], metadata[name] = opened.load(name)
        try:
            text = TextTokenizer.from_json(metadata["mulan"][_VOCABULARY])
        except (KeyError, ValueError) as error:
            raise UserError(f"{opened.path / 'mulan.safetensors'}: its metadata lack the text vocabulary; export the bundle again") from error
        return cls(config, variables, text, source=opened)

    def save_pretrained(self, path: str | os.PathLike, *, dtype: str = "float32", card: str | None = None) -> None:
        """Writes a bundle to the folder `path`, whole or not at all; an older bundle there is replaced.

        Args:
            path: the folder.
            dtype: of the stored weights; "float16" halves the size at the cost of rounding. Loading gives float32 either way.
            card: the model card, Markdown. None: a short one made from the config.
        """
        bundle.save(
            path,
            config=self.config.to_dict(),
            models={name: self.variables(name) for name in MODELS},
            metadata={"mulan": {_VOCABULARY: self.text.to_json()}},
            card=self._card() if card is None else card,
            dtype=dtype,
        )

    def _card(self) -> str:
        lines = [f"| {name} | {_millions(self.variables(name))} |" for name in MODELS]
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

    @functools.cached_property
    def acoustic(self) -> AcousticTokenizer:
        return AcousticTokenizer(self.config.soundstream, self.variables("soundstream"))

    @functools.cached_property
    def semantic(self) -> SemanticTokenizer:
        return SemanticTokenizer(self.config.w2v_bert, self.variables("w2v_bert"))

    @functools.cached_property
    def mulan(self) -> MuLanTokenizer:
        return MuLanTokenizer(self.config.mulan, self.variables("mulan"), self.text)

    @functools.cached_property
    def reranker(self) -> MuLanTokenizer:
        """What chooses among candidates, together with MuLan: the one that knows how the codec sounds (`fit` trains it), or in a bundle without it
        MuLan itself. A reranker has no tokens of its own."""
        variables = self.variables("mulan")
        return MuLanTokenizer(self.config.mulan, variables["reranker"], self.text) if "reranker" in variables else self.mulan

    @functools.cached_property
    def semantic_reranker(self) -> MuLanTokenizer:
        """What chooses among drafts: the MuLan that reads semantic tokens (`embed_semantic`). UserError in a bundle without it."""
        try:
            return MuLanTokenizer(self.config.mulan, self.variables("mulan")["semantic_reranker"], self.text)
        except KeyError:
            raise UserError("the model has nothing that could choose among drafts; set num_drafts to 1, or make the bundle with `musiclm fit`") from None

    def stage(self, name: str) -> StageDecoder:
        """The stage "semantic", "coarse" or "fine", as the sampler knows it."""
        return StageDecoder(self.config.stage(name), self.config.layout(name))

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
        sampling: Mapping[str, SamplingConfig | Mapping[str, float | int]] | None = None,
        on_progress: OnProgress | None = None,
    ) -> Music:
        """Music for each prompt (arXiv 2301.11325, section 3.2): text -> MuLan tokens -> semantic -> coarse -> fine -> wave, at -14 LUFS.

        A clip depends on its prompt, the seed and its number among the samples of that prompt; not on the other clips of the call, except that
        products of another batch size may round differently.

        Args:
            prompts: what the music should be. Longer ones than the text tower reads are cut (`mulan.truncated` says which).
            seconds: length of each clip, up to 300.
            seed: 0 to 2^32 - 1.
            num_samples: clips per prompt.
            num_candidates: clips made for each of these in coarse levels, of which the one is kept whose embeddings by `reranker` and by `mulan` are
                nearest to its prompt's. None: `config.num_candidates`.
            num_drafts: semantic token sequences drawn for each of those, of which as many as there are candidates go on: those nearest to the prompt
                (`semantic_reranker`, by their last MuLan window), chosen anew each `config.draft_sec`. None: `config.num_drafts`.
            sampling: {"semantic" | "coarse" | "fine": a SamplingConfig, or a dict of its fields to change, such as {"temperature": 0.9}}.
            on_progress: called as on_progress(stage, tokens done, tokens in all).

        Raises:
            UserError: an empty prompt, or a number out of range.
        """
        numbers = {"num_samples": num_samples, "num_candidates": num_candidates, "num_drafts": num_drafts}
        check_request(prompts, seconds=seconds, seed=seed, sampling=sampling, **numbers)
        num_candidates, num_drafts = num_candidates or self.config.num_candidates, num_drafts or self.config.num_drafts
        rows = tuple(prompt for prompt in prompts for _ in range(num_samples))
        keys = clip_keys([prompt for prompt in rows for _ in range(num_candidates * num_drafts)], seed=seed)
        mulan = jnp.repeat(self.mulan.text_tokens(list(prompts)), len(keys) // len(prompts), axis=0)
        sampling = resolve_sampling({name: self.config.sampling(name) for name in STAGES}, sampling)
        sample_rate_hz = self.config.audio.sample_rate_hz

        def play(codes):
            wave = np.asarray(self.acoustic.decode(codes))[:, : max(1, round(seconds * sample_rate_hz))]
            return np.stack([audio.normalize_loudness(clip, sample_rate_hz=sample_rate_hz) for clip in wave])

        how = {"sampling": sampling, "on_progress": on_progress}
        count = self.config.audio.semantic_tokens(seconds)
        if num_drafts == 1:
            semantic = self.semantic_tokens(mulan, count=count, keys=keys, **how)
        else:
            semantic, chosen = self._nearest_drafts(mulan, rows, count=count, keep=num_candidates, keys=keys, **how)
            mulan, keys = mulan[chosen], keys[chosen]
        codes = self.coarse_codes(semantic, mulan, keys=keys, **how)
        if num_candidates > 1:
            candidates = play(codes)
            judges = dict.fromkeys((self.reranker, self.mulan))  # Without a reranker these are one.
            chosen = _nearest(sum(_cosines(judge.embed_audio(candidates), judge.embed_text(list(rows))) for judge in judges), keep=1)
            if not self.config.use_fine:
                return Music(candidates[chosen], sample_rate_hz, rows)
            codes, mulan, keys = codes[chosen], mulan[chosen], keys[chosen]
        if self.config.use_fine:
            codes = self.fine_codes(codes, mulan, keys=keys, **how)
        return Music(play(codes), sample_rate_hz, rows)

    def _nearest_drafts(
        self,
        mulan: Int[Array, "B Qm"],
        prompts: Sequence[str],
        *,
        count: int,
        keep: int,
        keys: jax.Array,
        sampling: Mapping[str, SamplingConfig],
        on_progress: OnProgress | None,
    ) -> tuple[Int[Array, "k T25"], Int[np.ndarray, "k"]]:
        """The `keep` nearest to each prompt of its B / len(prompts) drafts of `count` tokens, and their rows. Each `draft_sec` those that are kept by then
        go on in as many ways as fill the rows again."""
        spec, reranker = self.config.audio, self.semantic_reranker
        rounds, window = -(-count // spec.semantic_tokens(self.config.draft_sec)), spec.semantic_tokens(self.config.mulan.window_sec)
        texts, kept = reranker.embed_text(list(prompts)), None

        def of_all_rounds(stage, done, _):
            if done or kept is None:
                on_progress(stage, done, len(keys) * count)

        for end in (count * (i + 1) // rounds for i in range(rounds)):
            drafts = self.semantic_tokens(mulan, count=end, prompt=kept, keys=keys, sampling=sampling, on_progress=on_progress and of_all_rounds)
            chosen = _nearest(_cosines(reranker.embed_semantic(drafts[:, -window:], token_samples=spec.semantic_samples), texts), keep=keep)
            kept = drafts[chosen]
        return kept, chosen

    def semantic_tokens(
        self,
        mulan: Int[Array, "B Qm"],
        *,
        count: int,
        keys: jax.Array,
        sampling: Mapping[str, SamplingConfig],
        prompt: Int[Array, "b n"] | None = None,
        on_progress: OnProgress | None = None,
    ) -> Int[Array, "B T25"]:
        """Semantic tokens for MuLan tokens, from text or from audio: the first stage.

        Args: count: of tokens, 40 ms each, those of `prompt` among them, which goes on in B / b ways each. keys: [B], one per clip. sampling: of each
        stage.
        """
        options = {"num_tokens": count, "count": len(mulan) * count, "keys": keys, "sampling": sampling, "on_progress": on_progress}
        return self._run("semantic", windows.generate_semantic, mulan, prompt=prompt, **options)

    def coarse_codes(
        self,
        semantic: Int[Array, "B T25"],
        mulan: Int[Array, "B Qm"],
        *,
        keys: jax.Array,
        sampling: Mapping[str, SamplingConfig],
        on_progress: OnProgress | None = None,
    ) -> Int[Array, "B T50 q"]:
        """The coarse levels of acoustic tokens for semantic ones: the second stage."""
        return self._run("coarse", windows.generate_coarse, mulan, semantic, count=semantic.size, keys=keys, sampling=sampling, on_progress=on_progress)

    def fine_codes(
        self,
        coarse: Int[Array, "B T50 q"],
        mulan: Int[Array, "B Qm"],
        *,
        keys: jax.Array,
        sampling: Mapping[str, SamplingConfig],
        on_progress: OnProgress | None = None,
    ) -> Int[Array, "B T50 Q"]:
        """All levels of acoustic tokens for the coarse ones: the third stage."""
        count = coarse.shape[0] * coarse.shape[1] // self.config.audio.frames_per_semantic
        mulan = mulan if self.config.fine_sees_mulan else None
        return self._run("fine", windows.generate_fine, coarse, mulan=mulan, count=count, keys=keys, sampling=sampling, on_progress=on_progress)

    def _run(self, name: str, generate: Callable, *inputs, count: int, sampling: Mapping[str, SamplingConfig], on_progress: OnProgress | None, **options):
        """One stage, whose progress is counted in tokens: so many for each of `count` semantic ones."""
        progress = _stage_progress(on_progress, name, tokens=count * _tokens_per_semantic(self.config, name))
        options |= {"windows": self.config.windows, "audio": self.config.audio}
        return generate(self.stage(name), self.variables(name)["params"], *inputs, sampling=sampling[name], on_progress=progress, **options)


def _cosines(embeddings: Float[Array, "N D"], texts: Float[Array, "R D"]) -> Float[np.ndarray, "R C"]:
    """Of each of R texts and its C = N / R rows, which follow each other. Both are of length 1."""
    return np.einsum("rcd,rd->rc", np.asarray(embeddings).reshape(len(texts), -1, texts.shape[-1]), np.asarray(texts))


def _nearest(cosines: Float[np.ndarray, "R C"], *, keep: int) -> Int[np.ndarray, "k"]:
    """Of all R C rows the numbers of the `keep` nearest to each text, the nearest first; k = keep R."""
    best = np.argsort(-cosines, axis=1, kind="stable")[:, :keep]
    return (best + cosines.shape[1] * np.arange(len(cosines))[:, None]).ravel()


def clip_keys(prompts: Sequence[str], *, seed: int) -> jax.Array:
    """One key per clip, from the seed, the prompt and the clip's number among those of the same prompt."""
    seen: collections.Counter[str] = collections.Counter()
    base, keys = jax.random.key(seed), []
    for prompt in prompts:
        keys.append(jax.random.fold_in(jax.random.fold_in(base, zlib.crc32(prompt.encode())), seen[prompt]))
        seen[prompt] += 1
    return jnp.stack(keys)


def _tokens_per_semantic(config: MusicLMConfig, stage: str) -> int:
    """Tokens that a stage writes for each 40 ms: 1, 8 and 16 at the paper's sizes."""
    target = config.layout(stage).target
    return target.levels * target.rate_hz // config.audio.semantic_rate_hz


def _stage_progress(on_progress: OnProgress | None, stage: str, *, tokens: int):
    """The sampler reports steps, each of which draws a token in every row: here they become tokens of all clips."""
    if on_progress is None:
        return None
    on_progress(stage, 0, tokens)
    return lambda done, total: on_progress(stage, tokens * done // total, tokens)


# ----------------------------------------------------------------------------------------------------------- bundles


def open_pretrained(path: str | os.PathLike) -> bundle.Bundle:
    """A bundle by its folder, or by the name of a packaged one."""
    packaged = _BUNDLES / str(path)
    if "/" not in str(path) and not os.path.exists(path) and packaged.is_dir():
        return bundle.open_bundle(packaged)
    if str(path) == "demo" and not os.path.exists(path):
        raise UserError("the model 'demo' is not packaged with this installation; install a release, or name a bundle of your own with --model")
    return bundle.open_bundle(path)


def _config(opened: bundle.Bundle) -> MusicLMConfig:
    try:
        return MusicLMConfig.from_dict(opened.config)
    except (UserError, ValueError, TypeError) as error:
        raise UserError(f"{opened.path / bundle.CONFIG_FILE}: {error}") from error


def describe(path: str | os.PathLike) -> str:
    """What a bundle holds, as text. Reads all of it, so that damage is found."""
    opened = open_pretrained(path)
    config = _config(opened)
    lines = [f"{opened.path}: MusicLM bundle, format {bundle.FORMAT}", ""]
    for name in MODELS:
        variables, _ = opened.load(name)
        lines.append(f"{name:<12} {_millions(variables):>8} parameters  {opened.files[f'{name}.safetensors']['bytes'] / 1e6:8.1f} MB")
    tokens = config.tokens
    lines += [
        "",
        f"{config.audio.sample_rate_hz} Hz; MuLan tokens {tokens.mulan_levels} x {tokens.mulan_codes}; "
        f"semantic {config.audio.semantic_rate_hz} Hz x {tokens.semantic_codes}; "
        f"acoustic {config.audio.frame_rate_hz} Hz x {tokens.acoustic_levels} levels ({tokens.coarse_levels} coarse) x {tokens.acoustic_codes}",
        *(f"{name:<12} temperature {config.sampling(name).temperature:g}, top-k {config.sampling(name).top_k or 'all'}" for name in STAGES),
    ]
    return "\n".join(lines)


def _millions(variables: Mapping[str, Any]) -> str:
    return f"{sum(leaf.size for leaf in jax.tree.leaves(variables)) / 1e6:.2f} M"
