"""The tokens of voices that clips accompany (SingSong, arXiv 2301.12662), for the stages. No model is trained for them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from musiclm_jax.arrays import Int
from musiclm_jax.data.clips import ClipStore, load_array
from musiclm_jax.data.token_store import offsets
from musiclm_jax.errors import UserError
from musiclm_jax.files import write_json
from musiclm_jax.parts import w2v_bert
from musiclm_jax.parts.encode import encode_settings, tokenize
from musiclm_jax.parts.part import VOICES, FitConfig, Part, Run, Step, TokenStream, Work, deciding
from musiclm_jax.tokens import ABSENT
from musiclm_jax.training import hosts

TOKENS = "voice_tokens"
# The tokens, and which clip accompanies which, so that stages are trained anew when it changes.
_FILE, _VOICES = "voice.npy", "voices.json"


@dataclasses.dataclass(frozen=True)
class VoicePart(Part):
    """The semantic tokens of the clips that other clips accompany, heard with noise."""

    @property
    def name(self) -> str:
        return "voice"

    def steps(self, fit: FitConfig) -> tuple[Step, ...]:
        if fit.model.voice is None:
            return ()
        settings = {"model": deciding(fit.model.w2v_bert), "voice": deciding(fit.model.voice), **encode_settings(fit)}
        return (Step(TOKENS, "tokens of the voices", _tokenize, (_FILE, _VOICES), settings, fit.streams["semantic"].needs, (VOICES,)),)

    def streams(self, fit: FitConfig) -> tuple[TokenStream, ...]:
        if fit.model.voice is None:
            return ()
        codebooks = lambda run: np.asarray(w2v_bert.tokenizer(run).variables["kmeans"]["centroids"])[None]  # noqa: E731
        return (TokenStream(fit.model.streams["voice"], (TOKENS,), _tokens, codebooks),)

    def check(self, run: Run) -> None:
        if run.config.model.voice is not None:
            voices_of(run.clips)


def voices_of(store: ClipStore) -> tuple[int | None, ...]:
    """Of each clip, the number of the clip that it accompanies.

    Raises:
        UserError: there is no such clip, it is in the other split, or no training clip accompanies another.
    """
    numbers = {clip.file_name: number for number, clip in enumerate(store.clips)}
    for clip in store.clips:
        if clip.voice is not None and (clip.voice not in numbers or store.clips[numbers[clip.voice]].split != clip.split):
            what = "is in the other split: give both the same" if clip.voice in numbers else "is not among the clips: list it, or correct its name"
            raise UserError(f"the voice {clip.voice!r} of {clip.file_name} {what}")
    if not any(clip.voice for clip in store.split("train")):
        raise UserError(
            'no training clip has a "voice", the name of a clip that it accompanies: add it in metadata.jsonl, or make `musiclm corpus DIR --stems`'
        )
    return tuple(None if clip.voice is None else numbers[clip.voice] for clip in store.clips)


def _heard(store: ClipStore) -> tuple[int, ...]:
    """The numbers of the clips that others accompany, in order."""
    return tuple(sorted({voice for voice in voices_of(store) if voice is not None}))


def _tokenize(run: Run, work: Work) -> dict[str, Any]:
    model, clips = run.config.model, run.clips
    voices = dataclasses.replace(clips, clips=tuple(clips.clips[number] for number in _heard(clips)))
    hosts.first(lambda: write_json(work.folder / _VOICES, voices_of(clips)))
    tokenizer = w2v_bert.tokenizer(run)
    encode = lambda wave: tokenizer.encode(model.voice.heard(np.asarray(wave)))  # noqa: E731
    tokens = tokenize(run, work, encode, rate_hz=model.audio.semantic_rate_hz, file=_FILE, store=voices)
    return {"voices": len(voices.clips), "seconds_of_audio": round(len(tokens) / model.audio.semantic_rate_hz, 1)}


def _tokens(run: Run) -> VoiceTokens:
    spec, clips, heard = run.config.model.audio, run.clips, _heard(run.clips)
    at = offsets(-(-clips.clips[number].length // spec.semantic_samples) for number in heard)
    place = {number: (int(at[i]), int(at[i + 1])) for i, number in enumerate(heard)}
    voices = tuple(None if voice is None else place[voice] for voice in voices_of(clips))
    return VoiceTokens(load_array(run.folder(TOKENS) / _FILE), voices, spec.semantic_rate_hz)


@dataclasses.dataclass(frozen=True)
class VoiceTokens:
    """The tokens of the voices of crops (`data.token_store.ClipTokens`), ABSENT where a clip accompanies none, or its voice has ended."""

    # int16 [sum T], of all voices.
    codes: np.ndarray
    # Of each clip, the first row of its voice and the row after the last one.
    voices: tuple[tuple[int, int] | None, ...]
    rate_hz: int

    def crops(
        self, clips: Sequence[int], starts_sec: Sequence[float], crop_sec: float | int, *, rows: np.ndarray, rng: np.random.Generator, text_share: float
    ) -> Int[np.ndarray, "b T"]:
        del rng, text_share
        crop = functools.partial(self._crop, length=round(crop_sec * self.rate_hz))
        return np.stack([crop(self.voices[clips[row]], round(starts_sec[row] * self.rate_hz)) for row in rows])

    def _crop(self, voice: tuple[int, int] | None, start: int, *, length: int) -> Int[np.ndarray, "T"]:
        found = np.full(length, ABSENT, np.int32)
        if voice is not None:
            codes = self.codes[voice[0] + start : min(voice[0] + start + length, voice[1])]
            found[: len(codes)] = codes
        return found
