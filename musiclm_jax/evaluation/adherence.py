"""Prompt adherence: whether generated music has the lead instrument, drums, mode and tempo that its caption names.

The model generates clips from captions of held-out clips, and `estimators`, which share nothing with the model, estimate the attributes of these clips.
Each result comes with two references. The ceiling is the result of the same estimators on the real clips of the same captions. Chance is the result of
the same generated clips with each other's captions, averaged exactly over all pairs of a clip and another clip's caption. A model that ignores its
captions is at chance, whatever music it generates.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from musiclm_jax import audio
from musiclm_jax.arrays import Bool, Float
from musiclm_jax.data.folder import ClipFolder, Entry
from musiclm_jax.data.metadata import METADATA
from musiclm_jax.errors import UserError, unwritable
from musiclm_jax.evaluation import bootstrap
from musiclm_jax.evaluation.clips import ClipFile, Prompt, check_seed, choose_prompts, read_clips, stem, with_ground_truth
from musiclm_jax.evaluation.estimators import SAMPLE_RATE_HZ, Estimate, Estimators, fit_estimators, lead, same_tempo
from musiclm_jax.evaluation.extras import require
from musiclm_jax.evaluation.tables import Table, page, percent
from musiclm_jax.files import AnyPath, as_path, make_folder, write_json, write_text


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
    "instrument": Measure("lead instrument", "instrument", lambda estimate, truth: estimate.instrument == lead(truth)),
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
    return {"count": len(rows)} | bootstrap.estimate(lambda counts: _rates(agree, ceiling, counts), len(rows), rng=rng)


def _rates(agree: Bool[np.ndarray, "n n"], ceiling: Bool[np.ndarray, "n"], counts: Float[np.ndarray, "R n"]) -> dict[str, Float[np.ndarray, "R"]]:
    """The four figures of `score` for each resample."""
    own, chance = bootstrap.pair_means(agree, counts)
    top = bootstrap.means(ceiling, counts)
    with np.errstate(invalid="ignore", divide="ignore"):
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
        out_dir: the folder for adherence.json and the generated clips, under the names of the real ones, with their captions in metadata.jsonl. None:
            nothing is written.
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
    out_dir = out_dir if out_dir is None else as_path(out_dir)
    out_files = [None if out_dir is None else _out_file(out_dir, prompt) for prompt in prompts]

    progress(f"fitting the estimators on {len(train)} real training clips")
    estimators = _fit(folder, train, num_samples, rng)
    progress(f"estimating the attributes of {num_captions} real held-out clips")
    real = [estimators.estimate(ClipFile.of(folder, prompt).read()[:num_samples]) for prompt in prompts]

    generated: list[Estimate] = []
    for start in range(0, num_captions, batch_size):
        captions = [prompt.caption for prompt in prompts[start : start + batch_size]]
        progress(f"generating clips {start + 1} to {start + len(captions)} of {num_captions}")
        for wave in _generate(model, captions, num_samples, seed):
            if (file := out_files[len(generated)]) is not None:
                audio.write_wav(file, wave)
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
        lines = [{"file_name": str(file.relative_to(out_dir)), "captions": [prompt.caption]} for file, prompt in zip(out_files, prompts, strict=True)]
        write_text(out_dir / METADATA, "".join(json.dumps(line) + "\n" for line in lines))
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


def _out_file(out_dir: AnyPath, prompt: Prompt) -> AnyPath:
    """The file of the clip that is generated from a prompt: that of the real clip, as WAV. Makes its folder."""
    file = out_dir / f"{stem(prompt)}.wav"
    try:
        make_folder(file.parent)
    except OSError as error:
        raise unwritable(out_dir, error) from error
    return file


def _fit(folder: ClipFolder, clips: Sequence[Entry], num_samples: int, rng: np.random.Generator) -> Estimators:
    """Fits the estimators on a random crop of each clip, because generated clips need not begin like the beginning of a piece."""

    def crop(clip: Entry) -> Float[np.ndarray, "N"]:
        wave = ClipFile.of(folder, clip).read()
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
    title = (
        f"Prompt adherence: {report['num_captions']} held-out captions, {report['seconds']:g} s each; estimators of {report['fit_clips']} clips; "
        "95 % intervals in brackets"
    )
    rows = []
    for name, measure in MEASURES.items():
        result = report["results"][name]
        keys = ("generated", "ceiling", "chance", "fraction")
        cells = [percent(result[key], result[f"{key}_95"]) for key in keys] if "generated" in result else ["too few captions name it", "", "", ""]
        rows.append((measure.title, f"{result['count']:5}", *cells))
    return page(title, Table(("", "clips", "generated", "real (ceiling)", "shuffled (chance)", "chance to ceiling"), tuple(rows)).text())
