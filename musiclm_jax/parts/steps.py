"""What `fit` and `train` do, one function per step: run(run, folder) writes the step's outputs into `folder` and returns numbers worth knowing."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import platform
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

import musiclm_jax
from musiclm_jax import bundle
from musiclm_jax.audio.features import log_mel
from musiclm_jax.configs import MusicLMConfig
from musiclm_jax.data.clips import ClipStore, crop_samples, prepare, wave_source
from musiclm_jax.data.folder import read_folder
from musiclm_jax.data.pairs import pair_source, renderings
from musiclm_jax.data.prefetch import Source
from musiclm_jax.data.token_store import TokenStore, pieces, token_source, wave_batches
from musiclm_jax.errors import UserError
from musiclm_jax.evaluation.ngrams import ngram_nats
from musiclm_jax.models import embedders, melody, mulan, w2v_bert
from musiclm_jax.models.melody import MelodyConfig
from musiclm_jax.models.mulan import MuLanConfig
from musiclm_jax.models.stage import start_from_codebooks
from musiclm_jax.models.text import TextTokenizer
from musiclm_jax.models.tokenizers import AcousticTokenizer, SemanticTokenizer
from musiclm_jax.musiclm import MODELS, MusicLM
from musiclm_jax.progress import ProgressLine
from musiclm_jax.records import read_json, to_dict, write_json, write_text
from musiclm_jax.tasks.codec import CodecTask
from musiclm_jax.tasks.melody import MelodyTask
from musiclm_jax.tasks.mulan import MuLanTask
from musiclm_jax.tasks.stage import StageTask
from musiclm_jax.tasks.w2v_bert import W2vBertTask
from musiclm_jax.tokens import STAGES, StageLayout
from musiclm_jax.training.loop import TrainConfig, read_metrics, train
from musiclm_jax.training.optim import OptimizerConfig
from musiclm_jax.training.task import Task

# ---------------------------------------------------------------------------------------------------------------------- Config


@dataclasses.dataclass(frozen=True)
class Training:
    """How one part is trained. Of a part of `FitConfig.model`, `task.model` is ignored, so that sizes are said once."""

    # A task of tasks/: losses, optimizer. A cosine schedule ends with the run, whatever its total_steps says.
    task: Any
    batch_size: int = 8
    # Seconds of audio per example.
    crop_sec: float = 2.0
    loop: TrainConfig = TrainConfig()

    def __post_init__(self):
        if self.batch_size < 1 or self.crop_sec <= 0:
            raise UserError(f"batch_size={self.batch_size}, crop_sec={self.crop_sec}: both must be above 0")


@dataclasses.dataclass(frozen=True)
class FitConfig:
    """Everything that decides what `fit` and `train` make of the data."""

    model: MusicLMConfig = MusicLMConfig()
    soundstream: Training = Training(CodecTask())
    w2v_bert: Training = Training(W2vBertTask())
    mulan: Training = Training(MuLanTask(), crop_sec=10.0)
    # MuLan twice more, through the codec and through semantic tokens; their size is `model.mulan`.
    reranker: Training = Training(MuLanTask(), crop_sec=10.0)
    semantic_reranker: Training = Training(MuLanTask(), crop_sec=10.0)
    semantic: Training = Training(StageTask(name="semantic"), crop_sec=30.0)
    coarse: Training = Training(StageTask(name="coarse"), crop_sec=10.0)
    fine: Training = Training(StageTask(name="fine"), crop_sec=3.0)
    # No part of `model`: its size is `melody.task.model`, and a crop is its window.
    melody: Training = Training(MelodyTask(), crop_sec=4.0)
    # Examples of the stages whose MuLan tokens are those of a caption instead of the audio. The paper's models never see text: 0.
    text_share: float = 0.0
    # Kinds of captions that MuLan learns from, each with its weight: for each example a kind is drawn by weight among those that the clip has, then one
    # of its captions of that kind. Empty: all captions of a clip alike, and so they are in any case where metadata.jsonl names no kinds.
    text_mix: tuple[tuple[str, float], ...] = ()
    # Audio whose features k-means clusters, seconds.
    kmeans_sec: float = 10_000.0
    # Seconds between the MuLan windows that condition the stages. 1 is the paper's; embedding them costs their number.
    mulan_hop_sec: float = 1.0
    # Windows in which clips are tokenized, seconds, each with so much of the one before as context; windows per batch.
    encode_sec: float = 30.0
    encode_context_sec: float = 5.0
    encode_batch_size: int = 4
    # Of the clustering and of the quantizers.
    seed: int = 0
    # Of the weights in the bundle: "float32" or "float16".
    bundle_dtype: str = "float32"

    def __post_init__(self):
        if not 0 <= self.text_share <= 1:
            raise UserError(f"text_share={self.text_share}: choose a share in [0, 1]")
        if self.text_mix:
            weights = dict(self.text_mix)
            if len(weights) < len(self.text_mix) or not all(0 <= weight < math.inf for weight in weights.values()) or not any(weights.values()):
                raise UserError(f"text_mix={self.text_mix}: name each kind once, with a weight of 0 or more, and one at least above 0")
        if not 0 <= self.encode_context_sec < self.encode_sec:
            raise UserError(f"encode_context_sec={self.encode_context_sec}, encode_sec={self.encode_sec}: the context must be shorter")
        if self.mulan_hop_sec <= 0:
            raise UserError(f"mulan_hop_sec={self.mulan_hop_sec}: choose a time above 0")
        for name in STAGES:
            crop, longest = self.training(name).crop_sec, getattr(self.model.windows, f"{name}_window_sec")
            if crop > longest:
                raise UserError(f"crop_sec={crop} of the {name} stage exceeds its window of {longest} s: it would learn what it never writes")
        window, rate = self.melody.task.model, self.model.audio.sample_rate_hz
        if window.mel.sample_rate_hz != rate or window.window_samples != crop_samples(self.melody.crop_sec, rate):
            raise UserError(
                f"melody: crop_sec={self.melody.crop_sec:g} at {rate} Hz, window_sec={window.window_sec:g} at {window.mel.sample_rate_hz} Hz: "
                "make both equal, and the seconds a multiple of 0.04"
            )

    @property
    def mulan_windows(self) -> MuLanConfig:
        """MuLan, with a window each `mulan_hop_sec`."""
        return dataclasses.replace(self.model.mulan, hop_sec=self.mulan_hop_sec)

    def training(self, name: str) -> Training:
        return getattr(self, name)

    def task(self, name: str) -> Task:
        """The task of a part, with the sizes of `model` and the length of its run."""
        training = self.training(name)
        changes: dict[str, Any] = {"name": name}
        sized = "mulan" if name in RERANKERS else name
        if sized in MODELS:
            changes["model"] = getattr(self.model, sized)
        if name in STAGES:
            changes |= {"tokens": self.model.tokens, "fine_sees_mulan": self.model.fine_sees_mulan}
        for field in dataclasses.fields(training.task):
            value = getattr(training.task, field.name)
            if isinstance(value, OptimizerConfig) and value.schedule == "cosine":
                changes[field.name] = dataclasses.replace(value, total_steps=training.loop.num_steps)
        return dataclasses.replace(training.task, **changes)


@dataclasses.dataclass(frozen=True)
class Run:
    """One run of `fit`: where things are, and the results of earlier steps."""

    config: FitConfig
    data: Path
    workdir: Path

    def folder(self, step: str) -> Path:
        return self.workdir / step

    @functools.cached_property
    def all_clips(self) -> ClipStore:
        return ClipStore.open(self.folder("prepare"))

    @functools.cached_property
    def clips(self) -> ClipStore:
        """The clips that have a caption, from which all but the melody embedder learns."""
        clips = self.all_clips.captioned()
        if not clips.clips:
            raise UserError(f"no clip of {self.data} has a caption: add captions to metadata.jsonl; without any, only melody can be trained")
        return clips

    @functools.cached_property
    def text(self) -> TextTokenizer:
        return TextTokenizer.from_json((self.folder("mulan") / "vocabulary.json").read_text(encoding="utf-8"))

    def variables(self, step: str) -> dict[str, Any]:
        """The weights that a step made."""
        return bundle.unflatten(safetensors.numpy.load_file(self.folder(step) / _WEIGHTS))

    def num_params(self, step: str) -> int:
        """How many numbers the weights of a step are. They are not read: their shapes stand in front of them."""
        with safetensors.safe_open(self.folder(step) / _WEIGHTS, framework="numpy") as file:
            return sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118  (it is no dict)

    def whole_variables(self, name: str) -> dict[str, Any]:
        """The weights of a model; those of w2v-BERT and MuLan come from several steps."""
        whole = self.variables(name)
        for extra in {"w2v_bert": ("kmeans",), "mulan": ("rvq", *RERANKERS)}.get(name, ()):
            whole |= self.variables(extra)
        return whole

    def mulan_tokens(self) -> Callable[[Any], np.ndarray]:
        """Embeddings of audio [B, D] -> tokens int32 [B, Q]."""
        config, quantizer = self.config.model.mulan, {"quantizer": self.variables("rvq")["quantizer"]}
        tokens = jax.jit(functools.partial(mulan.audio_tokens, config))
        return lambda embeddings: np.asarray(tokens(quantizer, jnp.asarray(embeddings)))


@dataclasses.dataclass(frozen=True)
class Step:
    name: str
    title: str
    run: Callable[[Run, Path], dict[str, Any]]
    # Steps whose outputs it reads.
    needs: tuple[str, ...]
    # Files that it leaves in its folder.
    outputs: tuple[str, ...]
    # What of the config its outputs depend on.
    config: Callable[[FitConfig], Any]
    reads_data: bool = False
    # Whether `fit` runs it. What bundles do not hold is trained by `train` alone.
    in_fit: bool = True


# Steps that train a model; `FitConfig.training` and `FitConfig.task` know them.
RERANKERS = ("reranker", "semantic_reranker")
TRAINED = ("soundstream", "w2v_bert", "mulan", *RERANKERS, *STAGES, "melody")
_WEIGHTS = "variables.safetensors"


def _save_variables(folder: Path, variables: dict[str, Any]) -> None:
    path, temporary = folder / _WEIGHTS, folder / f".{_WEIGHTS}.tmp"
    # order="C": safetensors writes memory as it lies. (np.ascontiguousarray would turn scalars into vectors.)
    arrays = {name: np.asarray(value, order="C") for name, value in bundle.flatten(jax.device_get(variables)).items()}
    safetensors.numpy.save_file(arrays, temporary)
    temporary.replace(path)


def _save_array(path: Path, array: np.ndarray) -> None:
    temporary = path.with_name(f".{path.name}")
    np.save(temporary.with_suffix(".tmp.npy"), array)
    temporary.with_suffix(".tmp.npy").replace(path)


# ---------------------------------------------------------------------------------------------------------------------- Data


def _prepare(run: Run, folder: Path) -> dict[str, Any]:
    clips = read_folder(run.data, hashes=run.workdir / "hashes.json")
    for warning in clips.warnings:
        print(f"prepare: {warning}", flush=True)
    store = prepare(clips, folder, sample_rate_hz=run.config.model.audio.sample_rate_hz)
    skipped = read_json(folder / "index.json")["num_skipped"]
    if skipped:
        print(f"prepare: {skipped} clips are of no use and were left out; see {folder / 'skipped.log'}", flush=True)
    clips = store.captioned()
    hours = sum(clip.length for clip in clips.clips) / store.sample_rate_hz / 3600
    results = {"clips": len(clips.clips), "held_out": len(clips.split("test")), "skipped": skipped, "hours": round(hours, 3)}
    tunes = {f"{split}_melodies": len(renderings(store, split)) for split in ("train", "test")}
    return results | (tunes if any(tunes.values()) else {})


# ---------------------------------------------------------------------------------------------------------------------- Models of tokens


def _train(
    run: Run, folder: Path, name: str, source: Callable[[str, int], Source], *, held_out: bool | None = None, **options: Any
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Trains a part on source(split, seed); returns its weights and its last metrics. held_out: whether there is a split "test"; None: as of `run.clips`."""
    training, task = run.config.training(name), run.config.task(name)
    seed = training.loop.seed
    held_out = bool(run.clips.split("test")) if held_out is None else held_out
    eval_source = source("test", seed + 1) if held_out else None
    state = train(task, source("train", seed), workdir=folder, config=training.loop, eval_source=eval_source, **options)
    return task.variables(state), {key: value for key, value in read_metrics(folder).items() if key not in ("step", "sec_left")}


def _train_on_waves(run: Run, folder: Path, *, name: str) -> dict[str, Any]:
    text = _vocabulary(run, folder) if name == "mulan" else None
    variables, results = _train(run, folder, name, _wave_sources(run, name, text))
    _save_variables(folder, variables)
    one, all_levels = results.get("eval_mel_distance_1_level"), results.get("eval_mel_distance")
    if one is not None and one < 1.03 * all_levels:
        print(f"{name}: as good with one level ({one:.3f}) as with all ({all_levels:.3f}), so its codes say little: train it longer", flush=True)
    return results


def _wave_sources(run: Run, name: str, text: TextTokenizer | None = None) -> Callable[[str, int], Source]:
    """What `_train` asks for: random crops of a split's clips, with one of their captions where there is a `text` vocabulary."""
    training, options = run.config.training(name), {}
    if text is not None:
        max_tokens = run.config.model.mulan.text.max_tokens
        options = {"encode_text": functools.partial(text.encode, max_tokens=max_tokens), "text_mix": dict(run.config.text_mix)}

    def source(split: str, seed: int) -> Source:
        return wave_source(run.clips, split=split, seed=seed, crop_sec=training.crop_sec, batch_size=training.batch_size, **options)

    return source


def _train_reranker(run: Run, folder: Path, *, name: str) -> dict[str, Any]:
    """Trains MuLan on, with clips as generation has them where it chooses: `_HEARD`.

    What MuLan hears in a recording, such as the lead instrument, it may not hear in a clip that was generated, among whose candidates it is to
    choose. Copies that learn this leave MuLan, and with it the tokens that the stages know, as they are. Ours, no paper's.
    """
    heard, kept = _HEARD[name](run)
    start, recorded = run.variables("mulan")["params"], _wave_sources(run, name, run.text)

    def source(split: str, seed: int) -> Source:
        batches = recorded(split, seed)

        def through(step: int) -> dict[str, np.ndarray]:
            batch = batches(step)
            wave = batch.pop("wave")
            return batch | heard(wave)

        return through

    variables, results = _train(run, folder, name, source, warm_start=lambda state: state.replace(params=state.params | {"mulan": start}))
    _save_variables(folder, {name: variables | kept})
    return results


# What MuLan is to hear of waves [B, N], as a part of its batch, and the variables that this takes.
_Heard = tuple[Callable[[np.ndarray], dict[str, np.ndarray]], dict[str, np.ndarray]]


def _through_codec(run: Run) -> _Heard:
    """The coarse levels of the codec, decoded."""
    acoustic = AcousticTokenizer(run.config.model.soundstream, run.variables("soundstream"))

    def heard(wave: np.ndarray) -> dict[str, np.ndarray]:
        codes = acoustic.encode(wave)[..., : run.config.model.coarse_levels]
        return {"wave": np.asarray(acoustic.decode(codes))[:, : wave.shape[1]]}

    return heard, {}


def _through_tokens(run: Run) -> _Heard:
    """The semantic tokens, each as the mean spectrum of what it stands for."""
    config, semantic = run.config.model.mulan, SemanticTokenizer(run.config.model.w2v_bert, run.whole_variables("w2v_bert"))
    spectra = _token_spectra(run, semantic)

    def heard(wave: np.ndarray) -> dict[str, np.ndarray]:
        mels = mulan.token_mels(config, jnp.asarray(spectra), semantic.encode(wave), token_samples=semantic.config.token_samples)
        return {"mels": np.asarray(mels)}

    return heard, {"spectra": spectra}


_HEARD: dict[str, Callable[[Run], _Heard]] = {"reranker": _through_codec, "semantic_reranker": _through_tokens}


def _token_spectra(run: Run, semantic: SemanticTokenizer) -> np.ndarray:
    """The mean log-mel spectrum, as MuLan sees it, of what each semantic token stands for: float32 [V, M]. A token that is not met has that of all."""
    mel, codes = run.config.model.mulan.mel, semantic.config.num_clusters
    frames = jax.jit(lambda wave: log_mel(wave, mel))
    total, count = np.zeros((codes, mel.num_mels)), np.zeros(codes)
    for wave in _crops(run, run.config.semantic_reranker):
        spectra = np.asarray(frames(wave))
        ids = np.repeat(np.asarray(semantic.encode(wave)), semantic.config.token_samples // mel.hop_samples, axis=1)[:, : spectra.shape[1]]
        np.add.at(total, ids, spectra)
        count += np.bincount(ids.ravel(), minlength=codes)
    everything = total.sum(axis=0) / count.sum()
    return np.where(count[:, None] > 0, total / np.maximum(count, 1)[:, None], everything).astype(np.float32)


def _crops(run: Run, training: Training) -> Iterator[np.ndarray]:
    """Batches [B, N] of random crops of the training clips."""
    source = wave_source(run.clips, split="train", seed=run.config.seed, crop_sec=training.crop_sec, batch_size=training.batch_size)
    progress, num_batches = ProgressLine(unit="batches"), _num_crop_batches(run, training)
    for step in range(num_batches):
        yield source(step)["wave"]
        progress("crops", step + 1, num_batches)


def _num_crop_batches(run: Run, training: Training) -> int:
    """How many make `kmeans_sec` seconds in all, or as many as there are."""
    there = sum(clip.length for clip in run.clips.split("train")) / run.clips.sample_rate_hz
    return max(1, round(min(run.config.kmeans_sec, there) / (training.crop_sec * training.batch_size)))


def _vocabulary(run: Run, folder: Path) -> TextTokenizer:
    """The word pieces of the training captions, kept beside MuLan's weights."""
    limit = run.config.model.mulan.text.vocab_size
    tokenizer = TextTokenizer.train((caption for clip in run.clips.split("train") for caption in clip.captions), vocab_size=limit)
    if tokenizer.vocab_size > limit:
        raise UserError(f"the captions have more distinct letters than the mulan text vocab_size={limit}: raise it to {tokenizer.vocab_size}")
    write_text(folder / "vocabulary.json", tokenizer.to_json())
    return tokenizer


def _kmeans(run: Run, folder: Path) -> dict[str, Any]:
    """Clusters the features of random training crops."""
    training, params = run.config.w2v_bert, run.variables("w2v_bert")["params"]
    fitted = w2v_bert.fit_kmeans(run.config.model.w2v_bert, params, _crops(run, training), rng=jax.random.key(run.config.seed))
    _save_variables(folder, fitted)
    return {"seconds_of_audio": _num_crop_batches(run, training) * training.crop_sec * training.batch_size}


# ---------------------------------------------------------------------------------------------------------------------- Tokens


def _rvq(run: Run, folder: Path) -> dict[str, Any]:
    """Embeds all windows and captions with MuLan, fits the quantizer that turns them into tokens, and tokenizes the captions."""
    config, clips = run.config.model.mulan, run.clips
    params = run.variables("mulan")["params"]
    windows, counts = _embed_windows(run, clips, mulan.embed_audio, run.config.mulan_windows, params)
    ids, mask = run.text.encode([caption for clip in clips.clips for caption in clip.captions], max_tokens=config.text.max_tokens)
    texts = _in_batches(jax.jit(functools.partial(mulan.embed_text, config, params)), ids, mask, batch_size=64)
    window_at = np.concatenate([[0], np.cumsum(counts)])
    text_at = np.concatenate([[0], np.cumsum([len(clip.captions) for clip in clips.clips])])
    means = np.stack([windows[a:b].mean(axis=0) for a, b in zip(window_at, window_at[1:])])
    training = np.array([clip.split == "train" for clip in clips.clips])
    text_training = np.repeat(training, np.diff(text_at))
    quantizer = mulan.fit_quantizer(jnp.asarray(means[training]), jnp.asarray(texts[text_training]), rng=jax.random.key(run.config.seed), config=config)
    tokenize = jax.jit(functools.partial(mulan.text_tokens, config, {"quantizer": quantizer}))
    tokens = _in_batches(tokenize, texts, batch_size=64).astype(np.int16)
    _save_array(folder / "windows.npy", windows.astype(np.float16))
    _save_array(folder / "texts.npy", tokens)
    _save_variables(folder, {"quantizer": quantizer})
    shown = np.flatnonzero(~training) if not training.all() else np.arange(len(training))
    report = mulan.quantizer_report(config, {"quantizer": quantizer}, jnp.asarray(means[shown]), jnp.asarray(texts[text_at[:-1][shown]]))
    results = {"windows": len(windows), "captions": len(texts)} | {name: float(value) for name, value in report.items()}
    return results | {f"text_perplexity_{level + 1}": _perplexity(tokens[:, level], config.num_codes) for level in range(config.num_levels)}


def _embed_windows(
    run: Run, clips: ClipStore, embed: Callable[..., jax.Array], config: MuLanConfig | MelodyConfig, params: Any
) -> tuple[np.ndarray, list[int]]:
    """Embeddings of all windows of all clips, float32 [sum W, D], and W of each clip. embed(config, params, wave [B, N]) -> [B, D]."""
    counts = [embedders.num_windows(clip.length, window=config.window_samples, hop=config.hop_samples) for clip in clips.clips]
    where = [(clip, i * config.hop_samples) for clip, count in enumerate(counts) for i in range(count)]
    embed = jax.jit(functools.partial(embed, config))
    progress, done = ProgressLine(unit="windows"), []
    for wave in wave_batches(clips, where, samples=config.window_samples, batch_size=run.config.encode_batch_size):
        done.append(np.asarray(embed(params, wave)))
        progress("embeddings", min(len(done) * run.config.encode_batch_size, len(where)), len(where))
    return np.concatenate(done)[: len(where)], counts


def _in_batches(fn: Callable[..., jax.Array], *arrays: np.ndarray, batch_size: int) -> np.ndarray:
    """fn over rows, `batch_size` at a time, the last batch filled up: one program."""
    total = len(arrays[0])
    done = []
    for first in range(0, total, batch_size):
        part = [array[first : first + batch_size] for array in arrays]
        done.append(np.asarray(fn(*(np.concatenate([p, np.repeat(p[-1:], batch_size - len(p), axis=0)]) for p in part))))
    return np.concatenate(done)[:total]


def _semantic_tokens(run: Run, folder: Path) -> dict[str, Any]:
    model = run.config.model
    ids = _tokenize(run, SemanticTokenizer(model.w2v_bert, run.whole_variables("w2v_bert")).encode, per_step=1)
    _save_array(folder / "semantic.npy", ids)
    use = {"perplexity": _perplexity(ids, model.tokens.semantic_codes), "repeats": float(np.mean(ids[1:] == ids[:-1]))}
    return {"seconds_of_audio": round(len(ids) / model.audio.semantic_rate_hz, 1)} | use


def _acoustic_tokens(run: Run, folder: Path) -> dict[str, Any]:
    model = run.config.model
    codes = _tokenize(run, AcousticTokenizer(model.soundstream, run.variables("soundstream")).encode, per_step=model.audio.frames_per_semantic)
    _save_array(folder / "acoustic.npy", codes)
    sizes = {f"perplexity_{level + 1}": _perplexity(codes[:, level], model.tokens.acoustic_codes) for level in range(model.tokens.acoustic_levels)}
    return {"seconds_of_audio": round(len(codes) / model.audio.frame_rate_hz, 1)} | sizes


def _tokenize(run: Run, encode: Callable[[np.ndarray], jax.Array], *, per_step: int) -> np.ndarray:
    """Tokens of all clips, end to end, int16; `per_step` of them for each 40 ms, so that all tokens of a clip cover the same time."""
    config, spec = run.config, run.config.model.audio
    window, context = spec.semantic_tokens(config.encode_sec), spec.semantic_tokens(config.encode_context_sec)
    # No longer than the longest clip, or all would be padding.
    window = min(window, max(-(-clip.length // spec.semantic_samples) for clip in run.clips.clips))
    context = min(context, window - 1)
    work = pieces([clip.length for clip in run.clips.clips], token_samples=spec.semantic_samples, window=window, context=context)
    batches = wave_batches(
        run.clips, [(piece.clip, piece.start) for piece in work], samples=window * spec.semantic_samples, batch_size=config.encode_batch_size
    )
    progress, found = ProgressLine(unit="windows"), []
    for number, wave in enumerate(batches):
        some = work[number * config.encode_batch_size :][: config.encode_batch_size]
        tokens = np.asarray(encode(wave)).astype(np.int16)
        found += [row[piece.skip * per_step : (piece.skip + piece.keep) * per_step] for row, piece in zip(tokens, some)]
        progress("tokens", number * config.encode_batch_size + len(some), len(work))
    return np.concatenate(found)


def _perplexity(codes: np.ndarray, num_codes: int) -> float:
    """How many codes are in use, as it were: exp of the entropy of their frequencies."""
    p = np.bincount(codes.astype(np.int64), minlength=num_codes) / len(codes)
    return float(np.exp(-np.sum(p[p > 0] * np.log(p[p > 0]))))


# ---------------------------------------------------------------------------------------------------------------------- Stages


# What a stage learns from, beside MuLan's tokens.
_STAGE_TOKENS = {"semantic": ("semantic",), "coarse": ("semantic", "acoustic"), "fine": ("acoustic",)}
# What the codes of these streams stand for, [Q, C, K].
_CODEBOOKS = {
    "semantic": lambda run: run.variables("kmeans")["kmeans"]["centroids"][None],
    "acoustic": lambda run: run.variables("soundstream")["quantizer"]["codebooks"],
}


def _train_stage(run: Run, folder: Path, *, name: str) -> dict[str, Any]:
    config, training = run.config, run.config.training(name)
    layout, mulan_tokens = config.model.layout(name), run.mulan_tokens()
    files = {kind: run.folder(f"{kind}_tokens") / f"{kind}.npy" for kind in _STAGE_TOKENS[name]}
    files |= {kind: run.folder("rvq") / f"{kind}.npy" for kind in ("windows", "texts")}
    num_windows = functools.partial(mulan.num_windows, config.mulan_windows)
    store = TokenStore.open(run.clips, audio=config.model.audio, files=files, num_windows=num_windows)

    holds = store.holds(training.crop_sec)
    if not holds.all():
        print(f"{name}: {np.sum(~holds)} of {len(holds)} clips are shorter than crop_sec={training.crop_sec:g} and teach it nothing", flush=True)

    def source(split: str, seed: int) -> Source:
        return token_source(
            store,
            streams=sorted({segment.stream for segment in layout.segments}),
            split=split,
            crop_sec=training.crop_sec,
            batch_size=training.batch_size,
            seed=seed,
            window_sec=config.model.mulan.window_sec,
            hop_sec=config.mulan_hop_sec,
            mulan_tokens=mulan_tokens,
            text_share=config.text_share,
        )

    options = {}
    if training.task.codebook_init:
        codebooks = {kind: _CODEBOOKS[kind](run) for kind in _STAGE_TOKENS[name]}
        rng = jax.random.fold_in(jax.random.key(config.seed), zlib.crc32(name.encode()))
        options["warm_start"] = lambda state: state.replace(params=start_from_codebooks(state.params, layout, codebooks, rng=rng))
    variables, results = _train(run, folder, name, source, **options)
    _save_variables(folder, variables)
    return results | (_beside_counting(results["eval_loss"], store, layout) if "eval_loss" in results else {})


def _beside_counting(loss: float, store: TokenStore, layout: StageLayout) -> dict[str, float]:
    """Held-out nats per token of the target under counts of single codes and of pairs; says so where a stage's `loss` is above the latter."""
    target = layout.target
    train, test = (store.chunks(target.stream, split, first_level=target.first_level, num_levels=target.levels) for split in ("train", "test"))
    unigram, bigram = ngram_nats(train, test, num_codes=target.codes)
    if loss > bigram.mean():
        print(f"{layout.name}: {loss:.3f} nats per token, where counts of pairs reach {bigram.mean():.3f}: it has hardly learned; train it longer", flush=True)
    levels = {f"eval_bigram_level_{level}": float(value) for level, value in enumerate(bigram)} if len(bigram) > 1 else {}
    return {"eval_unigram": float(unigram.mean()), "eval_bigram": float(bigram.mean())} | levels


# ---------------------------------------------------------------------------------------------------------------------- Melody


def _train_melody(run: Run, folder: Path) -> dict[str, Any]:
    """The embedder, then the quantizer of its embeddings. Its config is kept beside the weights, so that they can be used without ours."""
    training, clips = run.config.melody, run.all_clips

    def source(split: str, seed: int) -> Source:
        return pair_source(clips, split=split, crop_sec=training.crop_sec, batch_size=training.batch_size, seed=seed)

    variables, results = _train(run, folder, "melody", source, held_out=bool(renderings(clips, "test")))
    config = run.config.task("melody").model
    heard = dataclasses.replace(clips, clips=tuple(itertools.chain(*renderings(clips, "train"))))
    windows, _ = _embed_windows(run, heard, melody.embed, config, variables["params"])
    quantizer = melody.fit_quantizer(jnp.asarray(windows), rng=jax.random.key(run.config.seed), config=config)
    _save_variables(folder, variables | {"quantizer": quantizer})
    write_json(folder / "config.json", to_dict(config))
    return results | {"windows": len(windows)}


# ---------------------------------------------------------------------------------------------------------------------- Bundle


def _export(run: Run, folder: Path) -> dict[str, Any]:
    variables = {name: run.whole_variables(name) for name in MODELS}
    card = model_card(run, num_params={name: run.num_params(name) for name in TRAINED if STEPS[name].in_fit})
    MusicLM(run.config.model, variables, run.text).save_pretrained(folder / "bundle", dtype=run.config.bundle_dtype, card=card)
    return {"bytes": sum(path.stat().st_size for path in (folder / "bundle").iterdir())}


def model_card(run: Run, *, num_params: dict[str, int]) -> str:
    """README.md of the bundle: what it was made of, how, for how long, and how well each part does on held-out clips."""
    files = {name: run.folder(name) / "done.json" for name, step in STEPS.items() if step.in_fit}
    done = {name: read_json(file) for name, file in files.items() if file.exists()}
    data = done["prepare"]["results"]
    device = jax.devices()[0]
    lines = [
        *bundle.CARD_HEAD,
        "```python",
        "from musiclm_jax import MusicLM",
        'music = MusicLM.from_pretrained("this folder").generate(["a calm piano melody"], seconds=10, seed=0)',
        "```",
        "",
        f"Trained with musiclm_jax {musiclm_jax.__version__} (jax {jax.__version__}) on {len(jax.devices())} x {device.device_kind or device.platform}, "
        f"{platform.system()} {platform.machine()}.",
        f"Data: {data['clips']} captioned clips, {data['hours']:g} hours, {data['held_out']} of them held out; {data['skipped']} were of no use.",
        f"Licence, uses and limits of the model follow those of its data, the folder `{run.data.name}`.",
        "",
        "| part | parameters | steps | minutes |",
        "|---|---|---|---|",
    ]
    for name, count in num_params.items():
        lines.append(f"| {name} | {count / 1e6:.3g}M | {run.config.training(name).loop.num_steps} | {done[name]['seconds'] / 60:.1f} |")
    lines += ["", f"Wall time of all steps: {sum(each['seconds'] for each in done.values()) / 60:.1f} minutes.", "", "## Quality", ""]
    lines += [
        "Last values; `eval_` is on clips held out from training. `loss` of a stage is in nats per token.",
        "",
        "| step | metric | value |",
        "|---|---|---|",
    ]
    for name, each in done.items():
        for metric, value in each["results"].items():
            if name in ("prepare", "rvq", "kmeans") or name.endswith("_tokens") or metric.startswith("eval_"):
                lines.append(f"| {name} | {metric} | {value:.4g} |")
    return "\n".join([*lines, ""])


# ---------------------------------------------------------------------------------------------------------------------- The order


def _steps() -> Iterator[Step]:
    def training_of(name: str) -> Callable[[FitConfig], Any]:
        def config(fit: FitConfig) -> Any:
            # Not how often it logs or saves: that does not change what it learns.
            training = fit.training(name)
            parts = [fit.task(name), training.batch_size, training.crop_sec, training.loop.num_steps, training.loop.seed]
            if name in STAGES:
                return [*parts, fit.text_share, fit.mulan_windows, fit.model.audio]
            if name in ("mulan", *RERANKERS) and fit.text_mix:  # Only then: trainings of before there was a mix stay done.
                return [*parts, fit.text_mix]
            return [*parts, fit.seed] if name == "melody" else parts

        return config

    yield Step("prepare", "decoding the clips", _prepare, (), ("index.json", "samples.npy"), lambda fit: fit.model.audio, reads_data=True)
    for name in ("soundstream", "w2v_bert"):
        run = functools.partial(_train_on_waves, name=name)
        yield Step(name, "training", run, ("prepare",), (_WEIGHTS,), training_of(name))
    yield Step(
        "kmeans",
        "clustering w2v-BERT's features into semantic tokens",
        _kmeans,
        ("prepare", "w2v_bert"),
        (_WEIGHTS,),
        lambda fit: [fit.model.w2v_bert, fit.kmeans_sec, fit.seed, fit.w2v_bert.crop_sec, fit.w2v_bert.batch_size],
    )
    run = functools.partial(_train_on_waves, name="mulan")
    yield Step("mulan", "training", run, ("prepare",), (_WEIGHTS, "vocabulary.json"), training_of("mulan"))
    yield Step(
        "rvq",
        "quantizing MuLan's embeddings",
        _rvq,
        ("prepare", "mulan"),
        (_WEIGHTS, "windows.npy", "texts.npy"),
        lambda fit: [fit.mulan_windows, fit.seed],
    )
    yield Step(
        "reranker",
        "training",
        functools.partial(_train_reranker, name="reranker"),
        ("prepare", "soundstream", "mulan"),
        (_WEIGHTS,),
        lambda fit: [*training_of("reranker")(fit), fit.model.soundstream, fit.model.coarse_levels],
    )
    yield Step(
        "semantic_reranker",
        "training",
        functools.partial(_train_reranker, name="semantic_reranker"),
        ("prepare", "w2v_bert", "kmeans", "mulan"),
        (_WEIGHTS,),
        lambda fit: [*training_of("semantic_reranker")(fit), fit.model.w2v_bert, fit.kmeans_sec, fit.seed],
    )
    windows = lambda fit: [fit.encode_sec, fit.encode_context_sec]  # noqa: E731
    yield Step(
        "semantic_tokens",
        "tokenizing the clips",
        _semantic_tokens,
        ("prepare", "w2v_bert", "kmeans"),
        ("semantic.npy",),
        lambda fit: [fit.model.w2v_bert, *windows(fit)],
    )
    yield Step(
        "acoustic_tokens",
        "tokenizing the clips",
        _acoustic_tokens,
        ("prepare", "soundstream"),
        ("acoustic.npy",),
        lambda fit: [fit.model.soundstream, *windows(fit)],
    )
    for name in STAGES:
        run = functools.partial(_train_stage, name=name)
        yield Step(name, "training", run, ("prepare", "rvq", *(f"{kind}_tokens" for kind in _STAGE_TOKENS[name])), (_WEIGHTS,), training_of(name))
    trained = ("prepare", "soundstream", "w2v_bert", "kmeans", "mulan", "rvq", *RERANKERS, *STAGES)
    yield Step("export", "writing the bundle", _export, trained, ("bundle/config.json",), lambda fit: [fit.model, fit.bundle_dtype])
    yield Step("melody", "training", _train_melody, ("prepare",), (_WEIGHTS, "config.json"), training_of("melody"), in_fit=False)


# In the order in which they run.
STEPS: dict[str, Step] = {step.name: step for step in _steps()}
