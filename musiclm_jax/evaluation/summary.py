"""Every measure of a bundle that a folder of clips allows, on one page in HTML, with clips to listen to."""

from __future__ import annotations

import collections
import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from musiclm_jax import audio
from musiclm_jax.data.folder import ClipFolder
from musiclm_jax.errors import UserError
from musiclm_jax.evaluation.adherence import evaluate_adherence, format_report
from musiclm_jax.evaluation.clips import ClipFile, Progress, check_seed, choose_prompts, read_clips, stem
from musiclm_jax.evaluation.codec import evaluate_codec, format_codec_report
from musiclm_jax.evaluation.embeddings import load_mulan, load_musicnn
from musiclm_jax.evaluation.fad import evaluate_fad, format_fad_report
from musiclm_jax.evaluation.generated import Wanted, generate_clips
from musiclm_jax.evaluation.html import document, element, player, spectrogram
from musiclm_jax.evaluation.identity import model_name
from musiclm_jax.evaluation.kld import evaluate_kld, format_kld_report
from musiclm_jax.evaluation.mcc import evaluate_mcc, format_mcc_report
from musiclm_jax.evaluation.memorization import evaluate_memorization, format_memorization_report
from musiclm_jax.evaluation.mulan import evaluate_mulan, format_mulan_report
from musiclm_jax.evaluation.semantic import evaluate_semantic, format_semantic_report
from musiclm_jax.files import is_file, local_path, read_json, write_json, write_text
from musiclm_jax.generation.request import Music
from musiclm_jax.musiclm import MusicLM

PAGE, GENERATED = "index.html", "generated"
_NUM_SHOWN = 12
_FIT_CLIPS = 334


@dataclasses.dataclass(frozen=True)
class _Measure:
    """One measure: its title, the call that makes its report, and the function that formats it."""

    title: str
    evaluate: Callable[[], dict[str, Any]]
    show: Callable[[dict[str, Any]], str]


@dataclasses.dataclass(frozen=True, eq=False)
class Recorded:
    """A model of clips that have been generated: `generate` returns the clip of each caption (`adherence.Generator`)."""

    clips: dict[str, collections.deque[Path]]

    def generate(self, prompts: list[str], *, seconds: float, seed: int) -> Music:
        waves = [audio.read(self.clips[prompt].popleft()) for prompt in prompts]
        return Music(np.stack([wave[: round(seconds * audio.SAMPLE_RATE_HZ)] for wave in waves]), audio.SAMPLE_RATE_HZ, tuple(prompts))


def evaluate_all(
    model: str,
    data_dir: str | Path,
    out: str | Path,
    *,
    num_captions: int = 30,
    seconds: float = 10.0,
    num_clips: int = 100,
    seed: int = 0,
    progress: Progress = lambda line: None,
) -> tuple[list[str], dict[str, str]]:
    """Evaluates a bundle on a folder of clips, and writes a page `index.html`, the clips that it generates, and the report of each measure as JSON.

    Reports that are there already are not made again, if model, data and settings are the same; so a call that was stopped is continued.

    Args:
        model: the bundle.
        data_dir: the folder of clips, with the splits of the training. Held-out captions are the prompts.
        out: a local folder.
        num_captions: the most clips that are generated.
        seconds: length of the clips.
        num_clips: the most clips of `evaluate_memorization`.
        seed: random seed of all of it.
        progress: called with one line per step.

    Returns:
        (the names of the measures on the page, {name of another: the reason why it is not there}).

    Raises:
        UserError: the bundle or the folder cannot be read, `out` has clips of another model, or no measure is possible.
    """
    check_seed(seed)
    out, folder, musiclm = local_path(out), read_clips(data_dir, progress=progress), MusicLM.from_pretrained(model)
    wanted = _wanted(folder, num_captions, seed)
    if wanted:
        generate_clips(musiclm, wanted, out / GENERATED, seconds=seconds, seed=seed, progress=progress)
    settings = {"model": model_name(musiclm), "data": str(data_dir), "seconds": seconds, "seed": seed, "num_captions": num_captions, "num_clips": num_clips}
    options = {"seed": seed, "progress": progress}
    memorization = {"num_clips": num_clips, "kept": out / "memorization.continued.npz"}
    measures = _model_measures(musiclm, folder, seconds, memorization, options)
    if wanted:
        measures |= _clip_measures(model, folder, out / GENERATED, wanted, seconds, options)
    texts, missing = {}, {}
    for name, measure in measures.items():
        progress(f"measuring {name}")
        try:
            texts[name] = measure.show(_kept(out / f"{name}.json", settings, measure.evaluate))
        except UserError as error:
            missing[name] = str(error)
    if not texts:
        raise UserError(f"{folder.path}: allows no measure: {next(iter(missing.values()))}")
    if not wanted:
        missing["generated clips"] = f"{folder.path}: has fewer than 2 held-out clips with a caption"
    parts = [part for name, text in texts.items() for part in (element("h2", measures[name].title), element("pre", text))]
    left_out = [element("p", f"Left out: {name}: {reason}") for name, reason in missing.items()]
    write_text(out / PAGE, document(f"{model} on {data_dir}", *parts, *_gallery(folder, out, wanted[:_NUM_SHOWN]), *left_out))
    return list(texts), missing


def _wanted(folder: ClipFolder, num_captions: int, seed: int) -> list[Wanted]:
    """The clips to generate: those of held-out captions, as `evaluate_adherence` draws them. Empty: there are fewer than 2."""
    clips = [entry for entry in folder.captioned if entry.attributes] or list(folder.captioned)
    count = min(num_captions, sum(clip.split == "test" for clip in clips))
    if count < 2:
        return []
    prompts = choose_prompts(clips, num_captions=count, rng=np.random.default_rng([seed, 0]))
    return [Wanted(f"{stem(prompt)}.wav", prompt.caption) for prompt in prompts]


def _model_measures(musiclm: MusicLM, folder: ClipFolder, seconds: float, memorization: dict[str, Any], options: dict[str, Any]) -> dict[str, _Measure]:
    """Of the models of a bundle, on clips of the folder. memorization: further options of `evaluate_memorization`."""
    data, fit_clips = folder.path, min(_FIT_CLIPS, len(folder.split("train")))
    return {
        "codec": _Measure("Codec", lambda: evaluate_codec(musiclm.acoustic, data, seconds=seconds, progress=options["progress"]), format_codec_report),
        "semantic": _Measure(
            "Semantic tokens", lambda: evaluate_semantic(musiclm.semantic, data, seconds=seconds, fit_clips=fit_clips, **options), format_semantic_report
        ),
        "mulan": _Measure("MuLan", lambda: evaluate_mulan(musiclm.mulan, data, seconds=seconds, **options), format_mulan_report),
        "memorization": _Measure("Memorization", lambda: evaluate_memorization(musiclm, data, **memorization, **options), format_memorization_report),
    }


def _clip_measures(model: str, folder: ClipFolder, generated: Path, wanted: Sequence[Wanted], seconds: float, options: dict[str, Any]) -> dict[str, _Measure]:
    """Of the clips that the bundle generated."""
    by_caption = collections.defaultdict(collections.deque)
    for each in wanted:
        by_caption[each.caption].append(generated / each.file_name)
    folders, options = (folder.path, generated), {"seconds": seconds, **options}
    adherence = functools.partial(evaluate_adherence, Recorded(by_caption), folder.path, num_captions=len(wanted), **options)
    return {
        "adherence": _Measure("Prompt adherence", adherence, format_report),
        "fad": _Measure("Fréchet audio distance", lambda: evaluate_fad(load_musicnn(), *folders, num_clips=1000, **options), format_fad_report),
        "kld": _Measure("Divergence of classes", lambda: evaluate_kld(load_musicnn(), *folders, **options), format_kld_report),
        "mcc": _Measure("MuLan cycle consistency", lambda: evaluate_mcc(load_mulan(model), *folders, **options), format_mcc_report),
    }


def _kept(path: Path, settings: dict[str, Any], evaluate: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The report in a file, if it was made with the same settings; or a new one, which is written there."""
    found = read_json(path) if is_file(path) else None
    if isinstance(found, dict) and found.get("settings") == settings:
        return found["report"]
    write_json(path, {"settings": settings, "report": (report := evaluate())})
    return report


def _gallery(folder: ClipFolder, out: Path, wanted: Sequence[Wanted]) -> list[str]:
    """Some generated clips beside the real ones, with spectrograms and players."""
    real = {f"{stem(entry)}.wav": ClipFile.of(folder, entry) for entry in folder.entries}
    parts = [element("h2", "Clips")] if wanted else []
    for each in wanted:
        waves = {ClipFile(out / GENERATED / each.file_name): "generated", real[each.file_name]: "real"}
        length = len(audio.read(out / GENERATED / each.file_name))
        pictures = {clip: spectrogram(clip.read()[:length]) for clip in waves}
        clips = [f'<div class="clip">{what}<br>{pictures[clip]}<br>{player(clip, out / PAGE)}</div>' for clip, what in waves.items()]
        parts += [element("h3", each.caption), *clips]
    return parts
