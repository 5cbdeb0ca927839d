"""The semantic tokens of many clips in one file, and the passage among them that is closest to a clip: whether a model copies its training data.

A clip is compared by the tokens of its wave, as those of the index are, so that clips of any model can be compared, and what a codec loses counts. The search
is exact: every alignment of every passage of 5 s with every passage of the index.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import zipfile
from collections.abc import Sequence
from typing import Any

import numpy as np

from musiclm_jax.arrays import Float, Int
from musiclm_jax.data.folder import ClipFolder, Entry
from musiclm_jax.data.prefetch import map_ahead
from musiclm_jax.data.token_store import pieces
from musiclm_jax.errors import UserError, unreadable
from musiclm_jax.evaluation.clips import ClipFile, Excerpt, Progress, left_out, map_waves, read_clips
from musiclm_jax.evaluation.identity import tokenizer_name
from musiclm_jax.evaluation.tables import Table, page
from musiclm_jax.files import AnyPath, as_path, atomic_path, fingerprint, is_file, local_copy
from musiclm_jax.models.tokenizers import SemanticTokenizer
from musiclm_jax.musiclm import MusicLM

_FORMAT = 1
# Waves are tokenized in windows of this length, with as much context as `fit` gives by default; shorter waves are padded to a multiple of _PAD_SEC.
_WINDOW_SEC, _CONTEXT_SEC, _PAD_SEC = 30, 5, 5
# Length of the passages that are compared, MusicLM's 5 s of tokens (arXiv 2301.11325, section 5).
PASSAGE_TOKENS = 125
# An index is saved each time that so many clips have been added.
_SAVE_EVERY = 500
# Clips of the index of which the closest passages in other clips are found, for comparison.
_NUM_TYPICAL = 20
# Clips that the report of a folder shows.
_NUM_SHOWN = 5
# Alignments that are counted at once, so that the counts stay in the cache of a processor.
_CHUNK = 1 << 16
# Between clips, and before the first and after the last one: no token of a clip.
_NONE = -1


@dataclasses.dataclass(frozen=True)
class Passage:
    """A passage of a clip and the closest passage of an index, of as many tokens."""

    file_name: str
    # Where it begins in that file, and in the clip that was compared.
    second: float
    at_sec: float
    num_equal: int
    num_tokens: int

    @property
    def share(self) -> float:
        """The share of tokens that are the same in the same places."""
        return self.num_equal / self.num_tokens


@dataclasses.dataclass(frozen=True, eq=False)
class TokenIndex:
    """The semantic tokens of clips, one after the other."""

    # `tokenizer_name` of the model that made them.
    tokenizer: str
    rate_hz: int
    names: tuple[str, ...]
    # Size in bytes of each file, and its time of change in ns, by which a later call recognizes it.
    stamps: tuple[tuple[int, int], ...]
    # The number of tokens of each clip, and the tokens, int16 or int32.
    lengths: np.ndarray
    tokens: np.ndarray
    # Shares of equal tokens of some clips with their closest passages in other clips, ascending. Empty: not counted yet.
    typical: tuple[float, ...] = ()

    @functools.cached_property
    def starts(self) -> Int[np.ndarray, "n"]:
        """The place of the first token of each clip."""
        return np.cumsum(self.lengths) - self.lengths

    def clip(self, number: int) -> Int[np.ndarray, "T"]:
        return self.tokens[self.starts[number] : self.starts[number] + self.lengths[number]]


def tokenize(tokenizer: SemanticTokenizer, wave: Float[np.ndarray, "N"], *, rate_hz: int) -> Int[np.ndarray, "T"]:
    """The semantic tokens of a wave of any length, in windows of 30 s."""
    samples = tokenizer.config.token_samples
    total, pad = -(-len(wave) // samples), _PAD_SEC * rate_hz
    window = min(_WINDOW_SEC * rate_hz, -(-total // pad) * pad)
    wave = np.pad(wave, (0, max(total, window) * samples - len(wave)))
    context = min(_CONTEXT_SEC * rate_hz, window - 1)
    found = []
    for piece in pieces([total * samples], token_samples=samples, window=window, context=context):
        tokens = tokenizer.encode(wave[None, piece.start : piece.start + window * samples])[0]
        found.append(tokens[piece.skip : piece.skip + piece.keep])
    return np.concatenate(found)


# ---------------------------------------------------------------------------------------------------------------------- The file


def save_index(path: AnyPath, index: TokenIndex) -> None:
    """Writes an index to a .npz file, atomically. Raises UserError if it cannot be written."""
    header = {"format": _FORMAT, "tokenizer": index.tokenizer, "rate_hz": index.rate_hz, "names": index.names, "stamps": index.stamps, "typical": index.typical}
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez(file, header=json.dumps(header), lengths=index.lengths, tokens=index.tokens)


def read_index(path: str | AnyPath) -> TokenIndex:
    """Reads what `build_index` wrote. Raises UserError if it cannot be read, or is another file."""
    path = as_path(path)
    if not is_file(path):
        what = "it is no file" if path.exists() else "there is no such file"
        raise UserError(f"{path}: {what}; make an index with `musiclm evaluate index`")
    try:
        with np.load(local_copy(path), allow_pickle=False) as file:
            header, lengths, tokens = json.loads(str(file["header"])), file["lengths"], file["tokens"]
        if header.pop("format") != _FORMAT or lengths.sum() != len(tokens) or len(lengths) != len(header["names"]):
            raise ValueError("another format")
        stamps = tuple((int(size), int(time)) for size, time in header.pop("stamps"))
        return TokenIndex(names=tuple(header.pop("names")), typical=tuple(header.pop("typical")), stamps=stamps, lengths=lengths, tokens=tokens, **header)
    except OSError as error:
        raise unreadable(path, error) from error
    except (ValueError, KeyError, TypeError, AttributeError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: is not an index of tokens; make one with `musiclm evaluate index`") from error


def check_index(index: TokenIndex, musiclm: MusicLM, path: str | AnyPath) -> None:
    """Raises UserError if the tokens of an index are not those of a model."""
    if index.tokenizer != (name := tokenizer_name(musiclm)):
        raise UserError(f"{path}: has tokens of {index.tokenizer}, but the model's are of {name}: make an index with that model")


def build_index(musiclm: MusicLM, data_dir: str | AnyPath, out: str | AnyPath, *, progress: Progress = lambda line: None) -> tuple[TokenIndex, list[str]]:
    """Tokenizes all clips of a folder, of any split, and writes their index to the file `out`.

    Clips that an index in `out` has already, of the same name, size and time of change, are not tokenized again, and the file is saved every 500 clips: a
    call that was stopped is continued by the same call.

    Returns:
        (the index, the reasons why some clips cannot be used).

    Raises:
        UserError: the folder cannot be read, none of its clips can be used, or `out` is another file or an index of another tokenizer.
    """
    out, folder = as_path(out), read_clips(data_dir, progress=progress)
    rate_hz = musiclm.config.audio.semantic_rate_hz
    codes = np.int16 if musiclm.config.w2v_bert.num_clusters <= 2**15 else np.int32
    index = TokenIndex(tokenizer_name(musiclm), rate_hz, (), (), np.zeros(0, np.int64), np.zeros(0, codes))
    if is_file(out):
        check_index(old := read_index(out), musiclm, out)
        index = _kept(old, {entry.name: fingerprint(folder.path / entry.file_name) for entry in folder.entries})
    missing = [entry for entry in folder.entries if entry.name not in set(index.names)]
    skipped = [f"{folder.path / name}: {reason}" for name, reason in folder.unusable]
    excerpt = Excerpt(musiclm.config.audio.sample_rate_hz, musiclm.config.w2v_bert.token_samples)
    for start in range(0, len(missing), _SAVE_EVERY):
        group = missing[start : start + _SAVE_EVERY]
        progress(f"tokenizing clips {start + 1} to {start + len(group)} of {len(missing)}")
        index, unusable = _added(index, musiclm.semantic, folder, group, excerpt)
        skipped += unusable
        save_index(out, index)
    if not index.names:
        raise UserError(f"none of the {len(folder.entries)} clips of {folder.path} can be used, such as {skipped[0]}")
    progress("comparing clips of the index with each other")
    index = dataclasses.replace(index, typical=_typical(index))
    save_index(out, index)
    return index, skipped


def _kept(index: TokenIndex, stamps: dict[str, tuple[int, int]]) -> TokenIndex:
    """The clips of an index whose files are still the same."""
    rows = [i for i, (name, stamp) in enumerate(zip(index.names, index.stamps)) if stamps.get(name) == stamp]
    tokens = np.concatenate([index.tokens[:0], *(index.clip(i) for i in rows)])
    names, stamps = tuple(index.names[i] for i in rows), tuple(index.stamps[i] for i in rows)
    return TokenIndex(index.tokenizer, index.rate_hz, names, stamps, index.lengths[rows], tokens)


def _added(index: TokenIndex, tokenizer: SemanticTokenizer, folder: ClipFolder, entries: Sequence[Entry], excerpt: Excerpt) -> tuple[TokenIndex, list[str]]:
    """An index with further clips, and the reasons why others cannot be used."""
    fn, clips = functools.partial(tokenize, tokenizer, rate_hz=index.rate_hz), {ClipFile.of(folder, entry): entry.name for entry in entries}
    done, skipped = map_waves(fn, list(clips), excerpt, what="new", least=0)
    names = index.names + tuple(clips[file] for file, _, _ in done)
    stamps = index.stamps + tuple(fingerprint(file.path) for file, _, _ in done)
    lengths = np.append(index.lengths, [len(tokens) for _, tokens, _ in done]).astype(np.int64)
    tokens = np.concatenate([index.tokens, *(tokens.astype(index.tokens.dtype) for _, tokens, _ in done)])
    return TokenIndex(index.tokenizer, index.rate_hz, names, stamps, lengths, tokens), skipped


# ---------------------------------------------------------------------------------------------------------------------- The search


def nearest_passage(index: TokenIndex, tokens: Int[np.ndarray, "T"], *, num_tokens: int = PASSAGE_TOKENS, without: int | None = None) -> Passage:
    """The passage of an index that has the most tokens in common with a passage of a clip, place by place.

    Args:
        tokens: of the clip.
        num_tokens: length of the passages; a shorter clip is compared whole. Passages that reach beyond a clip of the index are compared as far as it goes.
        without: number of a clip of the index that is left out.
    """
    total, window = len(tokens), min(num_tokens, len(tokens))
    padded, places = _padded(index, window, without)
    padded = np.pad(padded, total, constant_values=_NONE)
    tokens = tokens.astype(padded.dtype)
    count = functools.partial(_best_alignment, padded, tokens, window)
    found = [best for _, best in map_ahead(count, range(0, len(padded) - total + 1, _CHUNK))]
    num_equal, place, at = max(found, key=lambda best: best[0])
    clip = max(0, int(np.searchsorted(places + total, place, side="right")) - 1)
    second = max(0, place - total - places[clip]) / index.rate_hz
    return Passage(index.names[clip], float(second), at / index.rate_hz, num_equal, window)


def _padded(index: TokenIndex, window: int, without: int | None) -> tuple[Int[np.ndarray, "_"], Int[np.ndarray, "n"]]:
    """The tokens with gaps of `window` between clips, so that no passage is in two of them, and the place of each clip's first token."""
    places = index.starts + window * np.arange(1, len(index.names) + 1)
    padded = np.full(len(index.tokens) + window * (len(index.names) + 1), _NONE, index.tokens.dtype)
    for i, place in enumerate(places):
        if i != without:
            padded[place : place + index.lengths[i]] = index.clip(i)
    return padded, places


def _best_alignment(padded: Int[np.ndarray, "_"], tokens: Int[np.ndarray, "T"], window: int, start: int) -> tuple[int, int, int]:
    """The best passage over the alignments that put the clip's first token at one of the places from `start` on, up to `_CHUNK` of them.

    Returns:
        (number of equal tokens, place of the passage in `padded`, its place in the clip).
    """
    size = min(_CHUNK, len(padded) - len(tokens) + 1 - start)
    # Of each alignment: how many of the last `window` tokens are equal.
    equal = np.zeros(size, np.uint8 if window < 256 else np.uint16)
    best = (-1, 0, 0)
    for t, token in enumerate(tokens):
        equal += padded[start + t : start + t + size] == token
        if t >= window:
            equal -= padded[start + t - window : start + t - window + size] == tokens[t - window]
        if t >= window - 1 and (most := int(equal.max())) > best[0]:
            first = t - window + 1
            best = (most, start + int(equal.argmax()) + first, first)
    return best


def _typical(index: TokenIndex) -> tuple[float, ...]:
    """The shares of equal tokens of 10 s of some clips, drawn at random, with their closest passages in other clips."""
    if len(index.names) < 2:
        return ()
    rng = np.random.default_rng(0)
    clips = rng.permutation(len(index.names))[:_NUM_TYPICAL].tolist()
    return tuple(sorted(nearest_passage(index, index.clip(i)[: 10 * index.rate_hz], without=i).share for i in clips))


def check_copies(musiclm: MusicLM, index: TokenIndex, waves: Sequence[Float[np.ndarray, "N"]] | Float[np.ndarray, "B N"]) -> list[Passage]:
    """The closest passage of an index for each clip.

    Args:
        musiclm: the model whose tokenizer made the index (`check_index`).
        waves: clips at the rate of the model.
    """
    return [nearest_passage(index, tokenize(musiclm.semantic, np.asarray(wave), rate_hz=index.rate_hz)) for wave in waves]


def format_passage(passage: Passage, index: TokenIndex) -> str:
    """One line for the user: where the closest passage is, how close it is, and how close clips of the index are to each other."""
    where = (
        f"{passage.file_name} at {passage.second:.1f} s: {100 * passage.share:.0f} % of {passage.num_tokens} tokens from {passage.at_sec:.1f} s on are equal"
    )
    return where + (f" ({format_typical(index)})" if index.typical else "")


def format_typical(index: TokenIndex) -> str:
    """How close clips of the index are to each other."""
    middle, most = 100 * float(np.median(index.typical)), 100 * index.typical[-1]
    return f"clips of the index and their closest passages in others: {middle:.0f} %, at most {most:.0f} %"


def entropy_bits(tokens: Int[np.ndarray, "T"]) -> float:
    """The empirical entropy of a sequence, in bits per token."""
    shares = np.unique(tokens, return_counts=True)[1] / len(tokens)
    return float(-(shares * np.log2(shares)).sum()) + 0.0


def evaluate_copies(musiclm: MusicLM, clips_dir: str | AnyPath, index_file: str | AnyPath, *, progress: Progress = lambda line: None) -> dict[str, Any]:
    """The closest passage of an index for each clip of a folder.

    Returns:
        A report of plain JSON types: "clips", a list of {"file_name", "share", "num_tokens", "at_sec", "closest", "second", "entropy"}, the closest first,
        with the entropy of the clip's passage in bits per token; "typical", "index" and "skipped".

    Raises:
        UserError: the folder or the index cannot be read, the index is of another tokenizer, or no clip can be used.
    """
    check_index(index := read_index(index_file), musiclm, index_file)
    folder = read_clips(clips_dir, progress=progress)
    excerpt = Excerpt(musiclm.config.audio.sample_rate_hz, musiclm.config.w2v_bert.token_samples)
    fn = functools.partial(tokenize, musiclm.semantic, rate_hz=index.rate_hz)
    names = {ClipFile.of(folder, entry): entry.name for entry in folder.entries}
    done, skipped = map_waves(fn, list(names), excerpt, what="generated", progress=progress)
    clips = []
    for i, (file, tokens, _) in enumerate(done):
        if i % 10 == 0:
            progress(f"comparing clips {i + 1} to {min(i + 10, len(done))} of {len(done)} with the index")
        found = nearest_passage(index, tokens)
        where = {"share": found.share, "num_tokens": found.num_tokens, "at_sec": found.at_sec, "closest": found.file_name, "second": found.second}
        passage = tokens[round(found.at_sec * index.rate_hz) :][: found.num_tokens]
        clips.append({"file_name": names[file], **where, "entropy": entropy_bits(passage)})
    clips.sort(key=lambda clip: -clip["share"])
    size = {"num_clips": len(index.names), "hours": len(index.tokens) / index.rate_hz / 3600, "tokenizer": index.tokenizer}
    return {"clips": clips, "typical": list(index.typical), "index": size, "skipped": skipped}


def format_copies_report(report: dict[str, Any]) -> str:
    """The report in plain text: how close clips are, and the closest of them."""
    shares, size = [clip["share"] for clip in report["clips"]], report["index"]
    title = f"Closest passages of {len(shares)} clips among {size['num_clips']} clips, {size['hours']:.1f} hours, by tokens of {size['tokenizer']}"
    columns = (("clips", shares), ("clips of the index, in other clips", report["typical"]))
    rows = tuple((what, f"{len(some)}", *(f"{100 * value:.0f} %" for value in np.quantile(some, (0.5, 0.9, 1)))) for what, some in columns if some)
    close = tuple(
        (clip["file_name"], f"{clip['closest']} at {clip['second']:.1f} s", f"{100 * clip['share']:.0f} %", f"{clip['entropy']:.1f}")
        for clip in report["clips"][:_NUM_SHOWN]
    )
    titles = ("clip", "closest passage", "equal tokens", "bits per token")
    tables = (Table(("equal tokens", "number", "median", "a tenth above", "most"), rows), Table(titles, close))
    return page(title, *(table.text() for table in tables), notes=left_out(report["skipped"]))


def format_index_report(index: TokenIndex, skipped: Sequence[str]) -> str:
    """What an index has, in plain text."""
    hours = len(index.tokens) / index.rate_hz / 3600
    size = f"{len(index.names)} clips, {hours:.1f} hours, {len(index.tokens)} semantic tokens of {index.tokenizer}"
    return page(size, *([format_typical(index)] if index.typical else []), notes=left_out(skipped))
