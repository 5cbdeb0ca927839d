"""Prompt adherence: whether generated music has the lead instrument, drums, mode and tempo that its caption names.

The model generates clips from captions of held-out clips, and `estimators`, which share nothing with the model, estimate the attributes of these clips.
Each result comes with two references. The ceiling is the result of the same estimators on the real clips of the same captions. Chance is the result of
the same generated clips with each other's captions, averaged exactly over all pairs of a clip and another clip's caption. A model that ignores its
captions is at chance, whatever music it generates.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from musiclm_jax import audio
from musiclm_jax.arrays import Bool, Float
from musiclm_jax.data.folder import ClipFolder, Entry
from musiclm_jax.errors import UserError, unwritable
from musiclm_jax.evaluation.clips import Prompt, check_seed, choose_prompts, read_clips, with_ground_truth
from musiclm_jax.evaluation.estimators import SAMPLE_RATE_HZ, Estimate, Estimators, fit_estimators, same_tempo
from musiclm_jax.evaluation.extras import require
from musiclm_jax.files import AnyPath, as_path, make_folder, write_json


@runtime_checkable
class Music(Protocol):
    """The result of `generate`."""

    # float32 [B, N] in [-1, 1].
    wave: Any
    sample_rate_hz: int


@runtime_checkable
class Generator(Protocol):
    """The interface of the evaluated model: `generate` returns one clip per prompt."""

    def generate(self, prompts: list[str], *, seconds: float, seed: int) -> Music: ...


# ------------------------------------------------------------------- scoring

# Limits of the tempo words, in beats per minute.
TEMPO_BANDS_BPM = {"slow": (0.0, 90.0), "mid": (90.0, 125.0), "fast": (125.0, float("inf"))}
# Tempo estimates are on a grid: an estimate outside of a band by this share is still right.
_BAND_TOLERANCE = 0.03


def in_band(tempo_bpm: float, band: str) -> bool:
    """Whether a tempo belongs to the band "slow", "mid" or "fast", with a tolerance of 3% at its limits."""
    low, high = TEMPO_BANDS_BPM[band]
    return low / (1 + _BAND_TOLERANCE) <= tempo_bpm <= high * (1 + _BAND_TOLERANCE)


@dataclasses.dataclass(frozen=True)
class Measure:
    """One measure of adherence."""

    title: str
    # Only captions that name this attribute count.
    needs: str
    # Compares the estimates for a generated clip with the attributes of the caption's clip.
    agrees: Callable[[Estimate, dict[str, Any]], bool]


# The first four are the main results.
MEASURES = {
    "instrument": Measure("lead instrument", "instrument", lambda estimate, truth: estimate.instrument == truth["instrument"]),
    "drums": Measure("drums or none", "drums", lambda estimate, truth: estimate.drums == truth["drums"]),
    "mode": Measure("mode", "mode", lambda estimate, truth: estimate.mode == truth["mode"]),
    "tempo": Measure("tempo: slow, mid, fast", "tempo", lambda estimate, truth: in_band(estimate.tempo_bpm, truth["tempo"])),
    "tempo_bpm": Measure("tempo within 6 %", "tempo_bpm", lambda estimate, truth: same_tempo(estimate.tempo_bpm, float(truth["tempo_bpm"]))),
    "tempo_octave": Measure(
        "  the same up to octave",
        "tempo_bpm",
        lambda estimate, truth: same_tempo(estimate.tempo_bpm, float(truth["tempo_bpm"]), meter=truth.get("meter", "4/4")),
    ),
}
HEADLINE = ("instrument", "drums", "mode", "tempo")
# The attributes that the evaluation needs of each clip.
_TRUTH = ("instrument", "drums", "tonic", "mode", "tempo", "tempo_bpm")
_NUM_RESAMPLES = 2000


def score(measure: Measure, prompts: Sequence[Prompt], generated: Sequence[Estimate], real: Sequence[Estimate], *, rng: np.random.Generator):
    """Evaluates one measure, with 95% bootstrap intervals.

    Args:
        measure: the measure.
        prompts: the captions, with the attributes of their clips.
        generated, real: the estimates for the generated and the real clip of each caption.
        rng: for the bootstrap.

    Returns:
        {"count", "generated", "ceiling", "chance", "fraction"}, and intervals under "generated_95" etc. "fraction" is the place of the generated clips
        between chance, 0, and the ceiling, 1; it is None if the ceiling is not above chance. {"count"} only, if fewer than two captions name the
        attribute.
    """
    rows = [i for i, prompt in enumerate(prompts) if measure.needs in prompt.named]
    if len(rows) < 2:
        return {"count": len(rows)}
    truths = [prompts[i].attributes for i in rows]
    # agree[i, j]: whether clip i agrees with caption j.
    agree = np.array([[measure.agrees(generated[i], truth) for truth in truths] for i in rows])
    ceiling = np.array([measure.agrees(real[i], truth) for i, truth in zip(rows, truths, strict=True)])
    resamples = rng.multinomial(len(rows), np.full(len(rows), 1 / len(rows)), size=_NUM_RESAMPLES)
    values = _rates(agree, ceiling, np.ones((1, len(rows))))
    intervals = _rates(agree, ceiling, resamples.astype(np.float64))
    result: dict[str, Any] = {"count": len(rows)}
    for name, value in values.items():
        kept = intervals[name][np.isfinite(intervals[name])]
        known = bool(np.isfinite(value[0]))
        result[name] = float(value[0]) if known else None
        result[f"{name}_95"] = [float(x) for x in np.percentile(kept, [2.5, 97.5])] if known and len(kept) else None
    return result


def _rates(agree: Bool[np.ndarray, "n n"], ceiling: Bool[np.ndarray, "n"], weights: Float[np.ndarray, "R n"]) -> dict[str, Float[np.ndarray, "R"]]:
    """The four figures of `score` for each row of weights, which are the numbers of times that each clip is drawn."""
    total = weights.sum(axis=1)
    own = weights @ np.diag(agree) / total
    top = weights @ ceiling / total
    # Only pairs of different clips count: a clip that is drawn twice is not paired with its own caption.
    squares = np.square(weights).sum(axis=1)
    pairs = np.einsum("ri,ri->r", weights @ agree, weights) - np.square(weights) @ np.diag(agree)
    with np.errstate(invalid="ignore", divide="ignore"):
        chance = pairs / (np.square(total) - squares)
        fraction = np.where(top > chance, (own - chance) / (top - chance), np.nan)
    return {"generated": own, "ceiling": top, "chance": chance, "fraction": fraction}


# --------------------------------------------------------------- the evaluation


def evaluate_adherence(
    model: Generator,
    data_dir: str | AnyPath,
    *,
    num_captions: int = 100,
    seconds: float = 10.0,
    seed: int = 0,
    batch_size: int = 10,
    fit_clips: int = 1000,
    out_dir: str | AnyPath | None = None,
    progress: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Generates one clip per held-out caption and measures how well it follows the caption.

    Args:
        model: a `MusicLM`, or another object with `generate`.
        data_dir: a corpus folder with ground truth (metadata.jsonl with "attributes"); see `read_clips` for its splits.
        num_captions: number of held-out captions, one per clip.
        seconds: length of the generated clips; real ones are cut to their first `seconds`.
        seed: random seed of the choice of captions, of every call of `generate`, and of the estimators' degradations.
        batch_size: captions per call of `generate`. MusicLM's clips do not depend on it.
        fit_clips: largest number of training clips on which the estimators are fitted. With 300 clips, estimates of unclear modes depended on the choice.
        out_dir: the folder for adherence.json and the generated clips, 000.wav, 001.wav, ... None: nothing is written.
        progress: called with one line per step.

    Returns:
        A report of plain JSON types: "results" {measure: count, generated, ceiling, chance, fraction, each with its 95 % interval},
        "clips", a list of each caption with the estimates for its generated and its real clip, and the settings. `format_report` formats it.

    Raises:
        UserError: a setting is out of range, a package of the extra `eval` is missing, the folder has no ground truth or too few held-out clips, or the
            estimators cannot be fitted on its training clips.
    """
    if seconds < 2:
        raise UserError(f"seconds={seconds}: choose at least 2 s, which tempo and key need")
    check_seed(seed)
    require("librosa", "sklearn")
    num_samples, folder = round(seconds * SAMPLE_RATE_HZ), read_clips(data_dir, progress=progress)
    clips = with_ground_truth(folder, _TRUTH)
    _check_truth(folder, clips)
    prompts = choose_prompts(clips, num_captions=num_captions, rng=np.random.default_rng([seed, 0]))
    rng = np.random.default_rng([seed, 1])
    train = [clip for clip in clips if clip.split == "train"]
    train = [train[int(i)] for i in rng.permutation(len(train))[:fit_clips]]
    if out_dir is not None:
        _make_folder(out_dir := as_path(out_dir))

    progress(f"fitting the estimators on {len(train)} real training clips")
    estimators = _fit(folder, train, num_samples, rng)
    progress(f"estimating the attributes of {num_captions} real held-out clips")
    real = [estimators.estimate(audio.read(folder.path / prompt.file_name)[:num_samples]) for prompt in prompts]

    generated: list[Estimate] = []
    for start in range(0, num_captions, batch_size):
        captions = [prompt.caption for prompt in prompts[start : start + batch_size]]
        progress(f"generating clips {start + 1} to {start + len(captions)} of {num_captions}")
        for wave in _generate(model, captions, num_samples, seed):
            if out_dir is not None:
                audio.write_wav(out_dir / f"{len(generated):03d}.wav", wave)
            generated.append(estimators.estimate(wave))

    rng = np.random.default_rng([seed, 2])
    report = {
        "num_captions": num_captions,
        "seconds": seconds,
        "seed": seed,
        "fit_clips": len(train),
        "results": {name: score(measure, prompts, generated, real, rng=rng) for name, measure in MEASURES.items()},
        "clips": [
            {
                "caption": prompt.caption,
                "file_name": prompt.file_name,
                "named": sorted(prompt.named),
                "attributes": prompt.attributes,
                "estimated_in_generated": dataclasses.asdict(estimate),
                "estimated_in_real": dataclasses.asdict(estimate_real),
            }
            for prompt, estimate, estimate_real in zip(prompts, generated, real, strict=True)
        ],
    }
    if out_dir is not None:
        write_json(out_dir / "adherence.json", report)
    return report


def _check_truth(folder: ClipFolder, clips: Sequence[Entry]) -> None:
    """Raises UserError if a clip's attributes cannot be compared with estimates, before the clips are generated."""
    some = Estimate("piano", True, 0, "major", 120.0)
    for clip in clips:
        try:
            for measure in MEASURES.values():
                measure.agrees(some, clip.attributes)
        except (KeyError, TypeError, ValueError) as error:
            what = f"the attributes of {clip.file_name} have unexpected values ({error})"
            raise UserError(f"{folder.path}: {what}; this evaluation needs a corpus of `musiclm corpus`") from None


def _make_folder(path: AnyPath) -> None:
    try:
        make_folder(path)
    except OSError as error:
        raise unwritable(path, error) from error


def _fit(folder: ClipFolder, clips: Sequence[Entry], num_samples: int, rng: np.random.Generator) -> Estimators:
    """Fits the estimators on a random crop of each clip, because generated clips need not begin like the beginning of a piece."""

    def crop(clip: Entry) -> Float[np.ndarray, "N"]:
        wave = audio.read(folder.path / clip.file_name)
        start = int(rng.integers(max(len(wave) - num_samples, 0) + 1))
        return wave[start : start + num_samples].copy()  # A copy, because a view would keep the whole clip in memory.

    try:
        return fit_estimators([crop(clip) for clip in clips], [clip.attributes for clip in clips], rng=rng)
    except (KeyError, ValueError) as error:
        raise UserError(f"{folder.path}: the estimators cannot be fitted on its training clips ({error}); raise fit_clips, or add clips") from error


def _generate(model: Generator, captions: list[str], num_samples: int, seed: int) -> list[Float[np.ndarray, "N"]]:
    """Generates one wave per caption, of `num_samples` samples at 24 kHz. Raises ValueError if the model returns other shapes."""
    import soxr

    music = model.generate(captions, seconds=num_samples / SAMPLE_RATE_HZ, seed=seed)
    waves = np.asarray(music.wave, np.float32)
    if waves.ndim != 2 or len(waves) != len(captions):
        raise ValueError(f"expected waves [{len(captions)}, N] from the model, got {waves.shape}")
    if music.sample_rate_hz != SAMPLE_RATE_HZ:
        waves = np.stack([soxr.resample(wave, music.sample_rate_hz, SAMPLE_RATE_HZ) for wave in waves])
    if waves.shape[1] < num_samples:
        raise ValueError(f"expected {num_samples} samples per clip, got {waves.shape[1]}")
    return list(waves[:, :num_samples])


# -------------------------------------------------------------------- the table


def format_report(report: dict[str, Any]) -> str:
    """The report as a table in plain text: one line per measure, 95% intervals in brackets."""
    lines = [
        f"Prompt adherence: {report['num_captions']} held-out captions, {report['seconds']:g} s each; estimators of {report['fit_clips']} clips; "
        "95 % intervals in brackets",
        "",
        f"{'':24} {'clips':>5}  {'generated':^17}  {'real (ceiling)':^17}  {'shuffled (chance)':^17}  chance to ceiling",
    ]
    for name, measure in MEASURES.items():
        result = report["results"][name]
        if "generated" not in result:
            lines.append(f"{measure.title:24} {result['count']:5}  too few captions name it")
            continue
        cells = [_percent(result[key], result[f"{key}_95"]) for key in ("generated", "ceiling", "chance", "fraction")]
        lines.append(f"{measure.title:24} {result['count']:5}  " + "  ".join(f"{cell:17}" for cell in cells).rstrip())
    return "\n".join(lines)


def _percent(value: float | None, interval: list[float] | None) -> str:
    if value is None or interval is None:
        return "        -"
    return f"{100 * value:3.0f} % [{100 * interval[0]:3.0f}, {100 * interval[1]:3.0f}]"
