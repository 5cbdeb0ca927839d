"""Prompt adherence: does the music have the lead instrument, drums, mode and tempo that its caption names?

Captions of held-out clips go in; the generated clips are heard by `estimators`, which share nothing with the model. Two figures stand
beside each result. Ceiling: the same estimators on the real clips of the same captions. Chance: the same generated clips against each
other's captions; the average over all ways to shuffle so that no clip keeps its own is exact, because it is the mean over all pairs of a
clip with another clip's caption. A model that ignores its captions is at chance, whatever it plays.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from musiclm_jax import audio
from musiclm_jax.arrays import Bool, Float
from musiclm_jax.data.metadata import read_captions
from musiclm_jax.errors import UserError
from musiclm_jax.evaluation.estimators import SAMPLE_RATE_HZ, Estimators, Heard, fit_estimators, same_tempo


@runtime_checkable
class Music(Protocol):
    """What `generate` returns."""

    # float32 [B, N] in [-1, 1].
    wave: Any
    sample_rate_hz: int


@runtime_checkable
class Generator(Protocol):
    """The part of `MusicLM` that is judged: one clip per prompt."""

    def generate(self, prompts: list[str], *, seconds: float, seed: int) -> Music: ...


# ------------------------------------------------------------------ captions

# Words by which a caption of the corpus names an attribute (data/corpus/captions.py). Moods are hints, not names: "sad" does not count
# as minor, nor does "waltz" as a tempo.
_NAMES = {
    "instrument": r"piano|guitar|flute|strings?|violins?|organ|rhodes|bells?|glockenspiel|chimes?|synth|synthesizer",
    "drums": r"drums?|percussion",
    "mode": r"major|minor",
    "tempo": r"slow|unhurried|leisurely|mid-tempo|medium-tempo|moderate|(?:medium|moderate) (?:tempo|pace)|tempo is medium"
    r"|fast|quick|up-tempo|\d+ bpm",
    "tempo_bpm": r"\d+ bpm",
}
_NAMES = {attribute: re.compile(rf"\b(?:{words})\b", re.IGNORECASE) for attribute, words in _NAMES.items()}


def named_attributes(caption: str) -> frozenset[str]:
    """Which of instrument, drums, mode, tempo and tempo_bpm the caption names. Only these are scored."""
    return frozenset(attribute for attribute, words in _NAMES.items() if words.search(caption))


@dataclasses.dataclass(frozen=True)
class Prompt:
    """One caption of a held-out clip."""

    caption: str
    file_name: str
    # The clip's ground truth, from the metadata.
    attributes: dict[str, Any]
    named: frozenset[str]


def read_metadata(data_dir: str | Path) -> list[dict[str, Any]]:
    """Lines of DIR/metadata.jsonl that have attributes and captions, these as one list whatever their kinds; variants of a corpus have none.

    Raises:
        UserError: there is no such file, a line is not JSON, its captions are no captions, or no clip has both.
    """
    path = Path(data_dir) / "metadata.jsonl"
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        clips = [clip for clip in map(json.loads, filter(str.strip, lines)) if clip.get("attributes") and clip.get("captions")]
        clips = [{**clip, "captions": captions} for clip in clips if (captions := list(read_captions(clip)[0]))]
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); make a corpus with `musiclm corpus` or name its folder") from error
    except ValueError as error:
        raise UserError(f"{path}: a line is not JSON ({error}); make the corpus again") from error
    if not clips:
        raise UserError(f"{path}: no clip has captions and attributes, the ground truth of this evaluation; use a corpus of `musiclm corpus`")
    return clips


def read_waves(paths: Sequence[Path], num_samples: int) -> Float[np.ndarray, "B N"]:
    """The first `num_samples` of each file, at 24 kHz. UserError if one is shorter."""
    waves = [audio.read(path)[:num_samples] for path in paths]
    for path, wave in zip(paths, waves, strict=True):
        if len(wave) < num_samples:
            raise UserError(f"{path}: holds {len(wave) / audio.SAMPLE_RATE_HZ:g} s, fewer than the {num_samples / audio.SAMPLE_RATE_HZ:g} s to be judged")
    return np.stack(waves)


def choose_prompts(clips: Sequence[dict[str, Any]], *, num_captions: int, rng: np.random.Generator) -> list[Prompt]:
    """One caption each of `num_captions` held-out clips, drawn among those captions of the clip that name the most."""
    held_out = [clip for clip in clips if clip.get("split") == "test"]
    if not 2 <= num_captions <= len(held_out):
        raise UserError(
            f"num_captions={num_captions}, and the corpus holds {len(held_out)} held-out clips: "
            f"ask for 2 to {len(held_out)} captions, or make a larger corpus (a tenth of it is held out)"
        )
    prompts = []
    for place in rng.permutation(len(held_out))[:num_captions]:
        clip = held_out[int(place)]
        names = [named_attributes(caption) for caption in clip["captions"]]
        most = max(len(named - {"tempo_bpm"}) for named in names)
        pick = int(rng.choice([i for i, named in enumerate(names) if len(named - {"tempo_bpm"}) == most]))
        prompts.append(Prompt(clip["captions"][pick], clip["file_name"], clip["attributes"], names[pick]))
    return prompts


# ------------------------------------------------------------------- scoring

# Tempo words: slow below 90, mid from 90 to 125, fast above 125 beats per minute.
TEMPO_BANDS_BPM = {"slow": (0.0, 90.0), "mid": (90.0, 125.0), "fast": (125.0, float("inf"))}
# A tempo estimate is on a grid: at the edge of a band, this much over it is still right.
_BAND_TOLERANCE = 0.03


def in_band(tempo_bpm: float, band: str) -> bool:
    """Whether a tempo is slow, mid or fast, with a tolerance of 3 % at the edges."""
    low, high = TEMPO_BANDS_BPM[band]
    return low / (1 + _BAND_TOLERANCE) <= tempo_bpm <= high * (1 + _BAND_TOLERANCE)


@dataclasses.dataclass(frozen=True)
class Measure:
    title: str
    # A caption counts if it names this.
    needs: str
    # Whether what is heard agrees with the attributes of a clip.
    agrees: Callable[[Heard, dict[str, Any]], bool]


# The first four are the headline.
MEASURES = {
    "instrument": Measure("lead instrument", "instrument", lambda heard, truth: heard.instrument == truth["instrument"]),
    "drums": Measure("drums or none", "drums", lambda heard, truth: heard.drums == truth["drums"]),
    "mode": Measure("mode", "mode", lambda heard, truth: heard.mode == truth["mode"]),
    "tempo": Measure("tempo: slow, mid, fast", "tempo", lambda heard, truth: in_band(heard.tempo_bpm, truth["tempo"])),
    "tempo_bpm": Measure("tempo within 6 %", "tempo_bpm", lambda heard, truth: same_tempo(heard.tempo_bpm, float(truth["tempo_bpm"]))),
    "tempo_octave": Measure(
        "  the same up to octave",
        "tempo_bpm",
        lambda heard, truth: same_tempo(heard.tempo_bpm, float(truth["tempo_bpm"]), meter=truth.get("meter", "4/4")),
    ),
}
HEADLINE = ("instrument", "drums", "mode", "tempo")
_NUM_RESAMPLES = 2000


def score(measure: Measure, prompts: Sequence[Prompt], generated: Sequence[Heard], real: Sequence[Heard], *, rng: np.random.Generator):
    """Generated, ceiling, chance and how far the generated clips have come from chance to ceiling, with 95 % bootstrap intervals.

    Returns {"count"} alone where fewer than two captions name the attribute; "fraction" is None where the ceiling is not above chance.
    """
    rows = [i for i, prompt in enumerate(prompts) if measure.needs in prompt.named]
    if len(rows) < 2:
        return {"count": len(rows)}
    truths = [prompts[i].attributes for i in rows]
    # agree[i, j]: clip i against caption j.
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
    """The four figures for each row of weights (how often each clip is drawn)."""
    total = weights.sum(axis=1)
    own = weights @ np.diag(agree) / total
    top = weights @ ceiling / total
    # Pairs of different clips only: a clip drawn twice does not meet its own caption.
    squares = np.square(weights).sum(axis=1)
    pairs = np.einsum("ri,ri->r", weights @ agree, weights) - np.square(weights) @ np.diag(agree)
    with np.errstate(invalid="ignore", divide="ignore"):
        chance = pairs / (np.square(total) - squares)
        fraction = np.where(top > chance, (own - chance) / (top - chance), np.nan)
    return {"generated": own, "ceiling": top, "chance": chance, "fraction": fraction}


# --------------------------------------------------------------- the evaluation


def evaluate_adherence(
    model: Generator,
    data_dir: str | Path,
    *,
    num_captions: int = 100,
    seconds: float = 10.0,
    seed: int = 0,
    batch_size: int = 10,
    fit_clips: int = 1000,
    out_dir: str | Path | None = None,
    progress: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Generates one clip per held-out caption and measures how well it follows the caption.

    Args:
        model: anything with `generate`.
        data_dir: a corpus folder with ground truth (metadata.jsonl with "attributes").
        num_captions: held-out captions, one per clip.
        seconds: length of the generated clips; real ones are cut to their first `seconds`.
        seed: of the choice of captions, of every call of `generate`, and of the estimators' degradations.
        batch_size: captions per call of `generate`. MusicLM's clips do not depend on it.
        fit_clips: training clips on which the estimators are fitted, at most. With 300 the verdict on a mode that is not clear depended on which they were.
        out_dir: where to write adherence.json and the generated clips as 000.wav, 001.wav ...; None writes nothing.
        progress: called with a line about each step.

    Returns:
        A report of plain JSON types: "results" {measure: count, generated, ceiling, chance, fraction, each with its 95 % interval},
        "clips" [caption, what was heard in the generated and the real clip], and the settings. `format_report` prints it.

    Raises:
        UserError: the folder lacks ground truth or held-out clips, or its training clips do not do for the estimators.
    """
    if seconds < 2:
        raise UserError(f"seconds={seconds}: tempo and key need at least 2 s")
    data_dir, num_samples = Path(data_dir), round(seconds * SAMPLE_RATE_HZ)
    clips = read_metadata(data_dir)
    prompts = choose_prompts(clips, num_captions=num_captions, rng=np.random.default_rng([seed, 0]))
    rng = np.random.default_rng([seed, 1])
    train = [clip for clip in clips if clip["split"] == "train"]
    train = [train[int(i)] for i in rng.permutation(len(train))[:fit_clips]]
    if out_dir is not None:
        Path(out_dir).mkdir(parents=True, exist_ok=True)

    progress(f"fitting the estimators on {len(train)} real training clips")
    estimators = _fit(data_dir, train, num_samples, rng)
    progress(f"listening to {num_captions} real held-out clips")
    real = [estimators.hear(audio.read(data_dir / prompt.file_name)[:num_samples]) for prompt in prompts]

    generated: list[Heard] = []
    for start in range(0, num_captions, batch_size):
        captions = [prompt.caption for prompt in prompts[start : start + batch_size]]
        progress(f"generating clips {start + 1} to {start + len(captions)} of {num_captions}")
        for wave in _generate(model, captions, num_samples, seed):
            if out_dir is not None:
                audio.write_wav(Path(out_dir) / f"{len(generated):03d}.wav", wave)
            generated.append(estimators.hear(wave))

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
                "heard_in_generated": dataclasses.asdict(heard),
                "heard_in_real": dataclasses.asdict(heard_real),
            }
            for prompt, heard, heard_real in zip(prompts, generated, real, strict=True)
        ],
    }
    if out_dir is not None:
        (Path(out_dir) / "adherence.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return report


def _fit(data_dir: Path, clips: Sequence[dict[str, Any]], num_samples: int, rng: np.random.Generator) -> Estimators:
    """Estimators fitted on a crop from anywhere in each clip, since what is generated need not begin as a piece begins."""

    def crop(clip: dict[str, Any]) -> Float[np.ndarray, "N"]:
        wave = audio.read(data_dir / clip["file_name"])
        start = int(rng.integers(max(len(wave) - num_samples, 0) + 1))
        return wave[start : start + num_samples].copy()  # A view would keep the whole clip in memory.

    try:
        return fit_estimators([crop(clip) for clip in clips], [clip["attributes"] for clip in clips], rng=rng)
    except (KeyError, ValueError) as error:
        raise UserError(f"{data_dir}: the estimators cannot be fitted on its training clips ({error}); fit on more clips") from error


def _generate(model: Generator, captions: list[str], num_samples: int, seed: int) -> list[Float[np.ndarray, "N"]]:
    """Waves at 24 kHz, one per caption, each of `num_samples`."""
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
    """A table in plain text: one line per measure, 95 % intervals in brackets."""
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
