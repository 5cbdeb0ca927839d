"""Stages as data (`StageSpec`), and generation of long token streams from stages that were trained on short windows.

MusicLM (arXiv 2301.11325, section 4.2): the semantic stage works in windows of 30 s, each continuing the last 15 s of the one before. For
the acoustic stages the paper says nothing; SoundStorm's account of the same generator (arXiv 2305.09636, section 4.2) gives 10 s windows with
a 3 s prompt, and AudioLM's fine stage takes 3 s chunks, all in one batch.

Windows start at 0, hop, 2 hop, ..., and each has the full length of the training crops; the last one is drawn only as far as requested. A draw
depends on (key, stage, window, index) alone. So a short clip is the beginning of a long one with the same key, and a clip does not depend on the
others in its batch, up to rounding, which may differ with the batch size.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import zlib
from collections.abc import Mapping, Sequence

import jax
import numpy as np

from musiclm_jax.arrays import Int
from musiclm_jax.checks import SECONDS, SHARE, SIZE, check_numbers
from musiclm_jax.errors import UserError
from musiclm_jax.generation.devices import Weights
from musiclm_jax.generation.sampler import Decoder, Keys, Progress, SamplingConfig, sample_codes
from musiclm_jax.models.stage import StageConfig
from musiclm_jax.specs import Stream
from musiclm_jax.tokens import Levels, StageLayout, make_layout


@dataclasses.dataclass(frozen=True)
class StageSpec:
    """One stage: its conditions, its target, its size and its windows. Training and generation both use this spec."""

    name: str
    # The levels that the stage predicts.
    target: Levels
    # Its conditions, in this order. Empty: none, as in AudioLM's semantic stage.
    prefix: tuple[Levels, ...] = ()
    model: StageConfig = StageConfig()
    # Length of a window, and of the training crops.
    window_sec: float | int = 30.0
    # Step from one window to the next; the overlap is given as a prompt. Equal to window_sec: windows do not overlap, and are drawn in one batch.
    hop_sec: float | int = 15.0
    # Largest batch of windows that do not overlap, over all clips. More is faster and takes more memory.
    max_windows: int = 32
    # Share of training sequences whose conditions are masked, for classifier-free guidance. 0: no unconditional training, so that guidance other
    # than 1 is an error.
    prefix_dropout: float = 0.0
    # Default sampling settings.
    sampling: SamplingConfig = SamplingConfig()

    def __post_init__(self):
        if not self.name.isidentifier():
            raise UserError(f"stage {self.name!r}: its name is also that of a file; choose letters, digits and _, a letter first")
        check_numbers(self, window_sec=SECONDS, hop_sec=SECONDS, max_windows=SIZE, prefix_dropout=SHARE)
        if not 0 < self.hop_sec <= self.window_sec:
            raise UserError(f"stage {self.name!r}: hop_sec={self.hop_sec}, window_sec={self.window_sec}: choose a hop above 0 and at most one window")
        if self.prefix_dropout == 1:
            raise UserError(f"stage {self.name!r}: prefix_dropout={self.prefix_dropout}: choose a rate below 1")
        self.check_sampling(self.sampling)

    def check_sampling(self, sampling: SamplingConfig) -> None:
        """Raises UserError for guidance that the stage was not trained for."""
        if sampling.guidance != 1 and not self.prefix_dropout:
            raise UserError(
                f"guidance={sampling.guidance:g} of the {self.name} stage: it was trained without dropping conditions (prefix_dropout=0); "
                "choose guidance=1, or train it with prefix_dropout=0.1"
            )

    def reads(self, stream: str) -> bool:
        """Whether levels of a stream are among the conditions."""
        return any(each.stream == stream for each in self.prefix)

    def layout(self, streams: Mapping[str, Stream]) -> StageLayout:
        """The layout of prefix and target over these streams. UserError: a stream or level is missing, or a window is not a whole number of its steps."""
        layout = make_layout(self.name, self.prefix, self.target, streams)
        for segment in layout.segments:
            for field in ("window_sec", "hop_sec"):
                steps = getattr(self, field) * segment.rate_hz
                if abs(steps - round(steps)) > 1e-6:
                    raise UserError(f"stage {self.name!r}: {field}={getattr(self, field)} is {steps:g} steps of {segment.stream!r}: choose a whole number")
        return layout

    def windows(self, layout: StageLayout, steps: int) -> tuple[list[int], int]:
        """(first steps of the windows that cover `steps` steps of the target, steps of one window)."""
        window, hop = (layout.target.steps(seconds) for seconds in (self.window_sec, self.hop_sec))
        return [hop * i for i in range(1 + max(0, math.ceil((steps - window) / hop)))], window


def musiclm_stages(
    *, coarse_levels: int = 4, fine_sees_mulan: bool = False, models: Mapping[str, StageConfig] | None = None
) -> tuple[StageSpec, StageSpec, StageSpec]:
    """The semantic, coarse and fine stage of MusicLM (arXiv 2301.11325, sections 3.2 and 4.2), with the paper's temperatures.

    The paper leaves open whether the fine stage sees MuLan tokens; AudioLM's sees coarse codes only, which is the default here.
    """
    models = models or {}
    mulan, semantic = Levels("mulan"), Levels("semantic")
    coarse, fine = Levels("acoustic", 0, coarse_levels), Levels("acoustic", coarse_levels)
    spec = lambda name, *args, **fields: StageSpec(name, *args, model=models.get(name, StageConfig()), **fields)  # noqa: E731
    return (
        spec("semantic", semantic, (mulan,), window_sec=30.0, hop_sec=15.0, sampling=SamplingConfig(1.0)),
        spec("coarse", coarse, (mulan, semantic), window_sec=10.0, hop_sec=7.0, sampling=SamplingConfig(0.95)),
        spec("fine", fine, (mulan, coarse) if fine_sees_mulan else (coarse,), window_sec=3.0, hop_sec=3.0, sampling=SamplingConfig(0.4)),
    )


def semantic_prefix(*, melody: bool = False, timing: bool = False, voice: bool = False) -> tuple[Levels, ...]:
    """The conditions of a semantic stage that reads optional streams before its MuLan tokens, so that gin files may add one each."""
    return tuple(Levels(name) for name, reads in {"voice": voice, "melody": melody, "timing": timing, "mulan": True}.items() if reads)


def required_steps(stages: Sequence[tuple[StageSpec, StageLayout]], *, seconds: float | int) -> dict[str, int]:
    """Steps that each stage must generate for `seconds` of music: {name: steps}.

    A stage reads the conditions of whole windows, so that earlier stages generate slightly more than `seconds`.
    """
    needed: dict[str, int] = {}  # Of each stream.
    required = {}
    for spec, layout in reversed(stages):
        required[spec.name] = max(needed.get(layout.target.stream, 0), layout.target.steps(seconds))
        starts, window = spec.windows(layout, required[spec.name])
        for segment in layout.prefix:
            if segment.rate_hz:
                needed[segment.stream] = max(needed.get(segment.stream, 0), layout.prefix_steps(segment, starts[-1] + window))
    return required


def generate_stage(
    spec: StageSpec,
    decoder: Decoder,
    params: Weights,
    streams: Mapping[str, np.ndarray],
    *,
    steps: int,
    keys: Keys,
    sampling: SamplingConfig | None = None,
    prompt: Int[np.ndarray, "G n Q"] | None = None,
    on_progress: Progress | None = None,
) -> Int[np.ndarray, "B T Q"]:
    """Draws the first T = `steps` steps of the target, window by window. The first n steps are those of `prompt`.

    Args:
        decoder: the stage's model, with its layout.
        params: its parameters after `Decoder.prepare`.
        streams: its conditions, G rows each. Streams with a rate must be as long as `required_steps` returns. Others may differ from window to window:
            they are [G, S, n, Q] then, with the S windows in the second axis.
        keys: one per clip, B in all. Each B / G consecutive clips share one row of conditions and prompt, whose prefill runs once.
        sampling: None: the stage's own.
        on_progress: called with (codes drawn, codes to draw) of one clip.
    """
    layout = decoder.layout
    starts, window = spec.windows(layout, steps)
    sampling = spec.sampling if sampling is None else sampling
    spec.check_sampling(sampling)
    draw = functools.partial(sample_codes, decoder, params, num_steps=window, sampling=sampling)
    if prompt is None and spec.hop_sec == spec.window_sec and len(starts) > 1:
        return _draw_together(spec, layout, draw, streams, starts, steps=steps, window=window, keys=keys, on_progress=on_progress)

    codes, levels = prompt, layout.target.levels
    for number, start in enumerate(starts):
        done = 0 if codes is None else codes.shape[1]
        if min(start + window, steps) <= done:
            continue
        groups = len(keys) if codes is None and not streams else len(codes if codes is not None else next(iter(streams.values())))
        piece = draw(
            _prefix_ids(layout, streams, number, start, window, rows=groups),
            until=min(window, steps - start),
            keys=window_keys(keys, spec.name, start),
            prompt=None if codes is None or done == start else codes[:, start:],
            on_progress=_offset(on_progress, done * levels, steps * levels),
        )
        new, ways = piece[:, done - start :], len(keys) // groups
        codes = new if codes is None else np.concatenate([np.repeat(codes, ways, axis=0), new], axis=1)
        streams = {name: np.repeat(stream, ways, axis=0) for name, stream in streams.items()}
    return codes[:, :steps]


def _draw_together(
    spec: StageSpec, layout: StageLayout, draw, streams, starts: list[int], *, steps: int, window: int, keys: Keys, on_progress: Progress | None
) -> Int[np.ndarray, "B T Q"]:
    """Windows that do not overlap, drawn in groups of up to `max_windows` rows."""
    batch = len(keys)
    streams = {name: np.repeat(stream, batch // len(stream), axis=0) for name, stream in streams.items()}
    # [B, W, P] -> [B * W, P], clip by clip.
    each = [_prefix_ids(layout, streams, number, start, window, rows=batch) for number, start in enumerate(starts)]
    rows = np.stack(each, axis=1).reshape(batch * len(starts), -1)
    row_keys = np.stack([window_keys(keys, spec.name, start) for start in starts], axis=1).reshape(len(rows), -1)
    # Batch sizes are powers of two, so that few programs are compiled; the last group repeats rows to fill up.
    size = min(spec.max_windows, 2 ** math.ceil(math.log2(len(rows))))
    groups = -(-len(rows) // size)
    codes_each, parts = window * layout.target.levels, []
    for group in range(groups):
        at = np.minimum(np.arange(group * size, (group + 1) * size), len(rows) - 1)
        progress = _offset(on_progress, group * codes_each, groups * codes_each)
        parts.append(draw(rows[at], keys=row_keys[at], on_progress=progress))
    return np.concatenate(parts)[: len(rows)].reshape(batch, len(starts) * window, -1)[:, :steps]


def _prefix_ids(layout: StageLayout, streams: Mapping[str, np.ndarray], number: int, start: int, window: int, *, rows: int) -> Int[np.ndarray, "G P"]:
    """The token ids of the conditions of window `number`, [start, start + window)."""
    cut = dict(streams)
    for segment in layout.prefix:
        if segment.rate_hz:
            first, length = layout.prefix_steps(segment, start), layout.prefix_steps(segment, window)
            cut[segment.stream] = streams[segment.stream][:, first : first + length]
            if cut[segment.stream].shape[1] < length:
                raise ValueError(f"{segment.stream!r} ends within the window of the {layout.name} stage: see required_steps")
        elif streams[segment.stream].ndim == 4:
            cut[segment.stream] = streams[segment.stream][:, number]
    return layout.prefix_ids(cut, batch=rows)


def window_keys(keys: Keys, stage: str, start: int) -> Keys:
    """The keys of one window, distinct for each stage and window."""
    return np.asarray(_fold_window(keys, np.uint32(zlib.crc32(stage.encode())), start))


@jax.jit
def _fold_window(keys: jax.Array, stage: jax.Array, start: jax.Array) -> jax.Array:
    fold = lambda key: jax.random.fold_in(jax.random.fold_in(key, stage), start)  # noqa: E731
    return jax.random.key_data(jax.vmap(fold)(jax.random.wrap_key_data(keys)))


def _offset(on_progress: Progress | None, before: int, total: int) -> Progress | None:
    return on_progress and (lambda done, _: on_progress(before + done, total))
