"""What melody.py, ending.py and accompaniment.py share: the held-out pieces of a sampled corpus, chromagrams, and tables with 95 % intervals over pieces."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Iterable

import jax.numpy as jnp
import numpy as np

from musiclm_jax import audio
from musiclm_jax.arrays import Float
from musiclm_jax.audio.features import LogMelConfig, log_mel
from musiclm_jax.corpus.sampled.attributes import Attributes
from musiclm_jax.errors import UserError
from musiclm_jax.evaluation.bootstrap import estimate, means
from musiclm_jax.evaluation.clips import ClipFile, read_clips, stem, with_ground_truth
from musiclm_jax.evaluation.tables import Table, count, number

SECONDS, RATE_HZ, SEED = 10, audio.SAMPLE_RATE_HZ, 0
# Two bands per semitone, from A on, folded to pitch classes.
CHROMA = LogMelConfig(window_samples=4096, hop_samples=2400, num_fft=8192, num_mels=120, min_hz=110.0, max_hz=3520.0, scale="octave", floor=1e-3)
# {row of a table: {column: the value of each piece}}.
Rows = dict[str, dict[str, list[float]]]


@dataclasses.dataclass(frozen=True)
class Piece:
    """A clip that no model was trained on, and its stems."""

    name: str
    caption: str
    attributes: Attributes
    # The clip itself as "mix", and those of "lead" and "band" that the corpus has.
    files: dict[str, ClipFile]

    def read(self, name: str = "mix", *, seconds: int | None = SECONDS) -> Float[np.ndarray, "N"]:
        """The first seconds of the clip or of a stem, at RATE_HZ. seconds: None: all of it."""
        return self.files[name].read(sample_rate_hz=RATE_HZ)[: None if seconds is None else seconds * RATE_HZ]


def read_pieces(folder: str, *, needs: str, keep: Callable[[Piece], bool]) -> list[Piece]:
    """The held-out pieces of a corpus that `keep` accepts. needs: what these have, for the message.

    Raises:
        UserError: the folder cannot be read, is of no sampled corpus, or has no such piece.
    """
    clips = read_clips(folder, progress=print)
    entries = [entry for entry in with_ground_truth(clips, [field.name for field in dataclasses.fields(Attributes)]) if entry.split == "test"]
    files = {stem(entry): ClipFile.of(clips, entry) for entry in clips.entries}
    pieces = []
    for entry in entries:
        attributes = Attributes(**{field.name: entry.attributes[field.name] for field in dataclasses.fields(Attributes)})
        names = {"mix": stem(entry)} | {name: f"{stem(entry)}-{name}" for name in ("lead", "band")}
        pieces.append(Piece(stem(entry), entry.captions[0], attributes, {name: files[each] for name, each in names.items() if each in files}))
    if not (kept := [piece for piece in pieces if keep(piece)]):
        raise UserError(f"{folder}: no held-out clip has {needs}; make clips with `musiclm corpus {folder} --instruments sampled --endings 0.3 --stems`")
    return kept


def with_others(pieces: list[Piece]) -> list[tuple[Piece, Piece]]:
    """Each piece beside the next one, after the last one the first, that has another tune. Composed tunes differ. UserError: all have one tune."""
    pairs = []
    for i, piece in enumerate(pieces):
        others = (other for other in pieces[i + 1 :] + pieces[:i] if not other.attributes.tune or other.attributes.tune != piece.attributes.tune)
        if (other := next(others, None)) is None:
            raise UserError(f"no held-out clip has another tune than {piece.name}: make more clips with `musiclm corpus`")
        pairs.append((piece, other))
    return pairs


def quarter_tones(wave: Float[np.ndarray, "N"]) -> Float[np.ndarray, "T C"]:
    """Amplitudes at 24 classes of quarter tones, from A on, every 0.1 s."""
    log = np.asarray(log_mel(jnp.asarray(wave[None]), CHROMA))[0]
    return np.exp(log / 2).reshape(len(log), -1, 24).sum(axis=1)


def chroma(wave: Float[np.ndarray, "N"]) -> Float[np.ndarray, "T C"]:
    """The `quarter_tones` of the first seconds, without their means over time."""
    classes = quarter_tones(wave[: SECONDS * RATE_HZ])
    return classes - classes.mean(axis=0)


def correlation(one: Float[np.ndarray, "*T"], two: Float[np.ndarray, "*T"]) -> float:
    """The cosine of two arrays without means; 0 if one is zero."""
    return float(np.vdot(one, two) / (np.linalg.norm(one) * np.linalg.norm(two) + 1e-9))


def collect(measured: Iterable[tuple[Piece, dict[str, dict[str, float]]]]) -> Rows:
    """The values of all pieces, {row: {column: value}} of each. Prints a line for each piece as soon as it is measured."""
    rows: Rows = {}
    for piece, found in measured:
        for row, values in found.items():
            for column, value in values.items():
                rows.setdefault(row, {}).setdefault(column, []).append(float(value))
        print(f"{piece.name}: " + "  ".join(" ".join(f"{value:.3f}" for value in values.values()) for values in found.values()), flush=True)
    return rows


def beside_first(rows: Rows) -> Rows:
    """With a column after each: in which share of the pieces the value is lower than that of the first row."""
    first, both = next(iter(rows.values())), {}
    for row, values in rows.items():
        both[row] = {}
        for column, found in values.items():
            both[row][column] = found
            both[row][f"{column} lower"] = [float(value < best) for value, best in zip(found, first[column], strict=True)]
    return both


def print_table(rows: Rows) -> None:
    """Prints the mean of each column over pieces, with its 95 % interval."""
    cells, rng = [], np.random.default_rng(SEED)
    for row, values in rows.items():
        columns = {column: np.array(each) for column, each in values.items()}
        num_pieces = len(next(iter(values.values())))
        found = estimate(lambda counts, columns=columns: {column: means(each, counts) for column, each in columns.items()}, num_pieces, rng=rng)
        cells.append((row, *(number(found[column], found[f"{column}_95"]) for column in columns)))
    print(Table((count(num_pieces, "clip"), *columns), tuple(cells)).text())


def run(evaluate: Callable[[argparse.Namespace], None], doc: str) -> None:
    """Calls `evaluate` with the options of the command line. An error of the user is one line, with exit status 2."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("folder", metavar="CLIPS", help="of musiclm corpus --instruments sampled --endings 0.3 --stems")
    parser.add_argument("--model", default="demo", help="a bundle")
    parser.add_argument("--clips", type=int, default=24, help="the most held-out clips that are used")
    parser.add_argument("--candidates", type=int, default=1, help="with 1, and one draft, nothing is chosen by the prompt")
    parser.add_argument("--drafts", type=int, default=1)
    options = parser.parse_args()
    if options.clips < 1:
        parser.error(f"--clips {options.clips}: choose 1 or more")
    try:
        evaluate(options)
    except UserError as error:
        parser.exit(2, f"{error}\n")


def tries(options: argparse.Namespace) -> dict[str, int]:
    """Of generation: how much is made, of which the best is kept."""
    return {"num_candidates": options.candidates, "num_drafts": options.drafts}
