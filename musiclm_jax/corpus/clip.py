"""What all corpora have in common: a clip, the split that it belongs to, and the interface by which `write` renders it."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

Split = Literal["train", "test"]
# 0: the clip itself. 1 and more: a variant. A name: a stem.
Variant = int | str

SAMPLE_RATE_HZ = 24000
CLIP_SEC = 30
CLIP_SAMPLES = CLIP_SEC * SAMPLE_RATE_HZ
# Standard deviation of the white noise of each clip: -66 dB, about that of a good cassette. Without it the upper bands of a quiet clip are digital silence,
# and log-spectral losses and metrics would mostly measure the silence of a codec there.
HISS = np.float32(5e-4)
# A file of the folder of a corpus, and of any folder of clips: whose sounds they are.
NOTICE = "NOTICE"
# Names of the independent random streams of a clip: a change in how captions are drawn does not change the music, and vice versa.
# A stream's position is part of its seed, so new streams are added at the end.
STREAMS = ("attributes", "music", "captions", "hiss", "variant", "ending")
# The stems, with numbers of their random streams that no variant has.
STEMS = {"lead": 101, "band": 102}


@dataclasses.dataclass(frozen=True)
class Description:
    """What the metadata say of a clip."""

    split: Split
    # Ground truth: the fields of the corpus' `Attributes`.
    attributes: dict[str, Any]
    # Empty for variants and stems.
    captions: list[str]


@runtime_checkable
class Corpus(Protocol):
    """Clips that follow from the fields of the corpus alone. `index` and `variant` are at least 0; a stem is a variant of `STEMS`."""

    seed: int

    @property
    def identity(self) -> dict[str, Any]:
        """What corpus.json says. Corpora with the same identity have the same clips."""

    @property
    def notice(self) -> str:
        """Whose sounds and tunes the clips have, and their terms, for whoever exchanges the clips or models of them. Empty: nobody else's."""

    def require(self) -> None:
        """Raises UserError if something is missing that rendering needs."""

    def describe(self, index: int, variant: Variant) -> Description: ...

    def render(self, index: int, variant: Variant) -> Float[np.ndarray, " N"]:
        """float32 [720000] in [-1, 1]: 30 s at 24 kHz; less if the piece ends. All variants of a clip have the same length."""


@dataclasses.dataclass(frozen=True)
class Clip(Description):
    """A rendered clip."""

    # float32 [N] in [-1, 1] at 24 kHz.
    wave: Float[np.ndarray, " N"]


def render_clip(corpus: Corpus, index: int, variant: Variant = 0) -> Clip:
    """A clip of a corpus with what its metadata say."""
    described = corpus.describe(index, variant)
    return Clip(described.split, described.attributes, described.captions, corpus.render(index, variant))


def clip_rng(seed: int, index: int, stream: str, *, variant: int = 0) -> np.random.Generator:
    """The generator of one of STREAMS, for one clip or a variant of it. It depends on the arguments alone."""
    name = [seed, index, STREAMS.index(stream)] + ([variant] if variant else [])
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(name)))


def pick(options: Sequence, rng: np.random.Generator) -> Any:
    """One of the options, each with the same probability."""
    return options[int(rng.integers(len(options)))]


def clip_split(index: int) -> Split:
    """Every tenth clip is held out."""
    return "test" if index % 10 == 9 else "train"


def is_variant(variant: Variant) -> bool:
    """Whether it is a variant by number: neither the clip itself nor a stem."""
    return bool(variant) and variant not in STEMS
