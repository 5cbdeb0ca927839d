"""Music of any length, piece by piece: text -> MuLan tokens -> semantic -> coarse -> fine -> wave (MusicLM, arXiv 2301.11325, sections 3.2 and 4.2).

The last stage asks for what it reads, and each stage draws the windows that the next one asks for. So the first piece is there soon, memory does not grow, and
a piece does not depend on what comes later. MusicLM's story mode (section 4.3) is a text that changes on the way.
"""

from __future__ import annotations

import bisect
import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from musiclm_jax.arrays import Float, Int
from musiclm_jax.audio.loudness import Leveller, level
from musiclm_jax.generation.beginning import Beginning
from musiclm_jax.generation.devices import Weights
from musiclm_jax.generation.request import clip_keys
from musiclm_jax.generation.sampler import Decoder, Progress, SamplingConfig
from musiclm_jax.generation.selection import Prefer, SelectionConfig, best_rows, choose_candidates, cosines, repeat
from musiclm_jax.generation.stages import StageSpec, required_steps
from musiclm_jax.generation.tracks import StageTrack
from musiclm_jax.generation.wishes import Script, Wish, embed_wishes, excluded_tokens, parse_wish, wish_tokens
from musiclm_jax.models.tokenizers import AcousticDecoder, AcousticTokenizer, MuLanTokenizer
from musiclm_jax.progress import OnProgress
from musiclm_jax.specs import AudioSpec

# A stage, and the second at which a window of it begins -> the tokens of an optional stream in that window.
Given = Callable[[StageSpec, float], Int[np.ndarray, "1 n Q"]]


@dataclasses.dataclass(frozen=True)
class StageAtWork:
    """A stage with its weights on the device."""

    spec: StageSpec
    decoder: Decoder
    weights: Weights
    sampling: SamplingConfig


@dataclasses.dataclass(frozen=True)
class Ensemble:
    """The trained models that make music together."""

    audio: AudioSpec
    # In order, from the first to the last that is not skipped.
    stages: tuple[StageAtWork, ...]
    mulan: MuLanTokenizer
    acoustic: AcousticTokenizer
    # The optional streams that stages read, such as "melody".
    given: Mapping[str, Given] = dataclasses.field(default_factory=dict)
    # Score candidates, by their sum.
    judges: tuple[MuLanTokenizer, ...] = ()
    # Scores the wave of a candidate, beside the judges. None: does not.
    prefer: Prefer | None = None
    # Scores drafts. None: there can be no drafts.
    draft_judge: MuLanTokenizer | None = None


class MusicStream:
    """Iterates over pieces of the waves of all clips, float32 [R, n], until `seconds` are complete.

    Attributes: seconds: of what was returned.
    """

    def __init__(
        self,
        models: Ensemble,
        script: Script,
        *,
        seed: int,
        seconds: float | int | None = None,
        sample: int = 0,
        tries: SelectionConfig = SelectionConfig(),
        mulan_tokens: Int[np.ndarray, "R Q"] | None = None,
        beginning: Beginning | None = None,
        ending: bool = False,
        on_progress: OnProgress | None = None,
    ):
        """script: what the music should be, and when that changes. seconds: None: without end. sample: number of the first clip of each prompt among all of it.

        mulan_tokens: the condition in the place of the first prompt, such as that of a recording. beginning: what the music continues. ending: whether it
        ends by itself after `seconds`.
        """
        self._models, self._tries, self._on_progress = models, tries, on_progress
        self._times, self._wishes, self._mulan, self._excluded = [], [], [], []
        for time, wishes in script:
            self._add(time, wishes)
        if mulan_tokens is not None:
            self._mulan[0] = mulan_tokens
        self._clips = len(self._wishes[0])
        rate = models.audio.sample_rate_hz
        self._samples = None if seconds is None else max(1, round(seconds * rate))
        ways, drafts = tries.num_candidates * tries.num_drafts, tries.num_drafts
        first = [models.mulan.text.normalize(wish.text) for wish in self._wishes[0]]
        before = sample * ways * len(dict.fromkeys(first))
        keys = clip_keys([*repeat(dict.fromkeys(first), sample * ways), *repeat(first, ways)], seed=seed)[before:]
        self._tracks = []
        for stage in models.stages:
            is_semantic = stage.spec.target.stream == "semantic"
            own = keys if is_semantic else keys[::drafts]
            track = StageTrack(stage.spec, stage.decoder, stage.weights, stage.sampling, own, rows=len(keys) // drafts)
            if ending:  # On a whole semantic token, as the crops of training.
                track.last = models.audio.semantic_tokens(float(seconds)) * track.layout.target.rate_hz // models.audio.semantic_rate_hz
            self._tracks.append(track)
        # Steps that each stage will have drawn in the end, for the progress.
        layouts = [(stage.spec, stage.decoder.layout) for stage in models.stages]
        self._totals = {} if seconds is None else required_steps(layouts, seconds=seconds)
        # Which entry of the script each track has drawn with.
        self._drawn_with = [0] * len(self._tracks)
        self._to_choose = tries.num_candidates > 1
        self._beginning = beginning
        if beginning is not None:
            self._begin(beginning)
        self._decoder: AcousticDecoder | None = None
        self._decoded = 0  # Steps of the last stage whose codes the decoder has.
        # What continues a recording has its level.
        self._levellers = [Leveller(sample_rate_hz=rate, follows=beginning is None or not beginning.wave.size) for _ in range(self._clips)]
        self._returned = 0

    def _begin(self, beginning: Beginning) -> None:
        """Gives each stage what the beginning has of its codes."""
        for track in self._tracks:
            target, rows = track.layout.target, track.rows
            codes = beginning.semantic[:, :, None] if target.stream == "semantic" else beginning.acoustic
            if codes is not None:
                track.begin_with(np.repeat(codes[:, :, target.first_level : target.first_level + target.levels], rows, axis=0))

    @property
    def seconds(self) -> float:
        return self._returned / self._models.audio.sample_rate_hz

    @property
    def prompt(self) -> str:
        """The prompt of the first clip. A new value takes effect where the first stage draws next."""
        return self._wishes[-1][0].text

    @prompt.setter
    def prompt(self, value: str) -> None:
        first = self._tracks[0]
        wish = parse_wish(value, without=self._wishes[-1][0].without)
        self._add(first.end / first.layout.target.rate_hz, [wish] * self._clips)

    def _add(self, time: float, wishes: Sequence[Wish]) -> None:
        self._times.append(time)
        self._wishes.append(list(wishes))
        self._mulan.append(wish_tokens(self._models.mulan, wishes))
        self._excluded.append(excluded_tokens(self._models.mulan, wishes))

    # ------------------------------------------------------------------------------------------------ pieces

    def __iter__(self) -> Iterator[Float[np.ndarray, "R n"]]:
        while not self._is_complete():
            piece = self._level(self._decode(self._next_codes()))
            if self._is_complete():
                piece = np.concatenate([piece, self._level(self._decoder.finish()), np.stack([leveller.finish() for leveller in self._levellers])], axis=1)
            if self._samples is not None:
                piece = piece[:, : self._samples - self._returned]
            if self._beginning is not None:
                piece = self._beginning.join(piece, at=self._returned)
            if piece.shape[1]:
                self._returned += piece.shape[1]
                yield piece

    def _is_complete(self) -> bool:
        return self._samples is not None and self._decoded >= self._steps(self._tracks[-1])

    def _steps(self, track: StageTrack) -> int:
        """Steps of a track that cover the clip. Without an end: more than there will be."""
        return 2**62 if self._samples is None else -(-self._samples * track.layout.target.rate_hz // self._models.audio.sample_rate_hz)

    def _decode(self, codes: Int[np.ndarray, "R T Q"]) -> Float[np.ndarray, "R n"]:
        self._decoder = self._decoder or AcousticDecoder(self._models.acoustic, rows=self._clips)
        return self._decoder.push(codes)

    def _level(self, wave: Float[np.ndarray, "R n"]) -> Float[np.ndarray, "R m"]:
        return np.stack([leveller.push(row) for leveller, row in zip(self._levellers, wave, strict=True)])

    def _next_codes(self) -> Int[np.ndarray, "R T Q"]:
        """The next acoustic codes of all levels."""
        if self._to_choose:
            self._choose_candidates()
        last = len(self._tracks) - 1
        track = self._tracks[last]
        if track.end == self._decoded:
            if count := self._windows_together(last):
                self._draw_together(last, count)
            else:
                self._advance(last, self._steps(track))
        codes = self._stream_codes("acoustic", self._decoded, track.end, last + 1)
        self._decoded = track.end
        self._forget()
        return codes

    def _draw_together(self, number: int, count: int) -> None:
        """Draws the next `count` windows of a stage, or fewer at the end."""
        track = self._tracks[number]
        start, stop = track.next_window()
        window, steps = stop - start, self._steps(track)
        left = -(-(steps - start) // window)
        conditions = self._conditions(number, start, min(count, left) * window, is_last=left <= count)
        report = self._progress(track)
        track.draw_together(conditions, count=min(count, left), size=count)
        if report is not None:
            report(1, 1)

    # ------------------------------------------------------------------------------------------------ stages

    def _windows_together(self, number: int) -> int:
        """Windows of a stage that are drawn together: as many as a window of the stage before has. 0: its windows overlap, or read a text that changes."""
        spec = self._tracks[number].spec
        if number == 0 or spec.hop_sec != spec.window_sec or any(spec.reads(stream) for stream in ("mulan", *self._models.given)):
            return 0
        return max(1, min(spec.max_windows, int(self._tracks[number - 1].spec.window_sec / spec.window_sec + 1e-6)))

    def _extend(self, number: int, steps: int, *, is_last: bool) -> None:
        """Draws a stage up to `steps` or further. is_last: no more of it will be asked for, so that no window need be drawn to its end."""
        while self._tracks[number].end < steps:
            self._advance(number, steps if is_last else 2**62)

    def _advance(self, number: int, until: int) -> None:
        """Draws the next window of a stage, at most to the step `until`, to the next change of the text, or to the next choice among drafts."""
        track, rate = self._tracks[number], self._tracks[number].layout.target.rate_hz
        entry = bisect.bisect_right([round(time * rate) for time in self._times], track.end) - 1
        if entry != self._drawn_with[number]:
            self._drawn_with[number] = entry
            track.turn()
        start, stop = track.next_window()
        if entry + 1 < len(self._times):
            until = min(until, round(self._times[entry + 1] * rate))
        drafting = self._tries.num_drafts > 1 and track.spec.target.stream == "semantic"
        if drafting:
            interval = self._models.audio.semantic_tokens(self._tries.draft_sec)
            until = min(until, (track.end // interval + 1) * interval)
        conditions = self._conditions(number, start, stop - start, is_last=until < stop and self._samples is not None and not drafting, entry=entry)
        excluded = np.repeat(self._excluded[entry], track.rows // self._clips, axis=0) if track.spec.reads("mulan") else None
        track.draw(conditions, until=until, excluded=excluded, on_progress=self._progress(track, min(stop, until)))
        if drafting:
            self._choose_drafts(track, entry)

    def _conditions(self, number: int, start: int, steps: int, *, is_last: bool, entry: int = 0) -> Mapping[str, np.ndarray]:
        """The streams that a stage reads for its steps [start, start + steps)."""
        track, found = self._tracks[number], {}
        rows = track.rows
        for segment in track.layout.prefix:
            if segment.stream == "mulan":
                found["mulan"] = np.repeat(self._mulan[entry], rows // self._clips, axis=0)
            elif segment.stream in self._models.given:
                tokens = self._models.given[segment.stream](track.spec, start / track.layout.target.rate_hz)
                found[segment.stream] = np.repeat(tokens, rows, axis=0)
            else:
                first, stop = (track.layout.prefix_steps(segment, at) for at in (start, start + steps))
                for writer in range(number):
                    if self._tracks[writer].spec.target.stream == segment.stream:
                        self._extend(writer, stop, is_last=is_last)
                found[segment.stream] = self._stream_codes(segment.stream, first, stop, number)
        return found

    def _stream_codes(self, stream: str, first: int, stop: int, before: int) -> Int[np.ndarray, "R T Q"]:
        """What the stages before the number `before` have drawn of a stream, all levels."""
        return np.concatenate([track.codes(first, stop) for track in self._tracks[:before] if track.spec.target.stream == stream], axis=2)

    def _forget(self) -> None:
        """Drops what no stage reads any more."""
        for number, track in enumerate(self._tracks):
            needed = track.end
            for reader in self._tracks[number + 1 :]:
                for segment in reader.layout.prefix:
                    if segment.stream == track.spec.target.stream:
                        needed = min(needed, reader.layout.prefix_steps(segment, reader.next_window()[0]))
            if track.spec.target.stream == "semantic" and self._models.draft_judge is not None:
                needed = min(needed, track.end - self._models.audio.semantic_tokens(self._models.draft_judge.config.window_sec))
            track.forget(needed)

    def _progress(self, track: StageTrack, stop: int | None = None) -> Progress | None:
        """Reports the codes of a draw that begins now and ends at the step `stop`. None: at the end of the windows that are drawn together."""
        if self._on_progress is None:
            return None
        total, begin = self._totals.get(track.spec.name, 0), track.end
        per_step = len(track.keys) * track.layout.target.levels

        def report(done: int, of: int) -> None:
            at = track.end if stop is None else begin + (stop - begin) * done / of
            self._on_progress(track.spec.name, round(at * per_step), max(total, math.ceil(at)) * per_step)

        if not begin:
            self._on_progress(track.spec.name, 0, max(total, 1) * per_step)
        return report

    # ------------------------------------------------------------------------------------------------ selection

    def _choose_drafts(self, track: StageTrack, entry: int) -> None:
        """Keeps, of each clip's drafts, those nearest to the prompt."""
        judge, spec = self._models.draft_judge, self._models.audio
        window = spec.semantic_tokens(judge.config.window_sec)
        tokens = track.codes(max(0, track.end - window), track.end)[:, :, 0]
        texts = embed_wishes(judge, self._wishes[entry])
        keep = len(track.keys) // self._tries.num_drafts // self._clips
        rows = best_rows(cosines(judge.embed_semantic(tokens, token_samples=spec.semantic_samples), texts), keep=keep)
        track.take(rows, track.keys)

    def _choose_candidates(self) -> None:
        """Keeps the best candidate of each clip, by what the first acoustic stage has drawn of its first `choose_sec`."""
        self._to_choose = False
        number = next(i for i, track in enumerate(self._tracks) if track.spec.target.stream == "acoustic")
        track, rate = self._tracks[number], self._tracks[number].layout.target.rate_hz
        steps = min(self._steps(track), math.ceil(self._tries.choose_sec * rate))
        self._extend(number, steps, is_last=steps == self._steps(track))
        wave = self._models.acoustic.decode(track.codes(0, steps))[:, : self._samples]
        wave = np.stack([level(row, sample_rate_hz=self._models.audio.sample_rate_hz) for row in wave])
        ways = self._tries.num_candidates
        rows = choose_candidates(wave, {judge: embed_wishes(judge, self._wishes[0]) for judge in self._models.judges}, prefer=self._models.prefer)
        for each in self._tracks:
            drafts = len(each.keys) // (self._clips * ways)
            keys = each.keys.reshape(self._clips * ways, drafts, -1)[rows].reshape(self._clips * drafts, -1)
            each.take(rows, keys)
