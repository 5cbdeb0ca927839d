"""The names of judges, as users choose them: `load_embedding`, `load_classifier` and `load_matcher`."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from musiclm_jax.arrays import Float
from musiclm_jax.errors import UserError
from musiclm_jax.evaluation import embeddings, outside, saved
from musiclm_jax.evaluation.embeddings import Embedding


@runtime_checkable
class Classifier(Protocol):
    """A model that says of what classes music is. The fields are those of `Embedding`."""

    name: str
    labels: tuple[str, ...]
    sample_rate_hz: int
    min_samples: int

    def logits(self, wave: Float[np.ndarray, "N"]) -> Float[np.ndarray, "T V"]:
        """Logits of the classes over time. Threads may call it at once."""
        ...


@runtime_checkable
class Matcher(Protocol):
    """A model that compares music with texts. The fields are those of `Embedding`."""

    name: str
    sample_rate_hz: int
    min_samples: int
    # What it was trained on: shorter clips are padded with silence, and their embeddings are worth less.
    full_sec: float

    def embed_clip(self, wave: Float[np.ndarray, "N"]) -> Float[np.ndarray, "D"]:
        """The unit embedding of a clip. Threads may call it at once."""
        ...

    def embed_texts(self, texts: Sequence[str]) -> Float[np.ndarray, "n D"]:
        """Unit embeddings of texts."""
        ...


# {name: from the bundle, the weights, and what follows the colon of the name or None}.
Loader = Callable[[str, str | None, str | None], Any]
EMBEDDINGS: dict[str, Loader] = {
    "musicnn": lambda model, weights, part: embeddings.load_musicnn(),
    "mulan": lambda model, weights, part: embeddings.load_mulan(model),
    "w2v-bert": lambda model, weights, part: embeddings.load_w2v_bert(model, layer=_number(part)),
    "codec": lambda model, weights, part: embeddings.load_codec(model),
    "vggish": lambda model, weights, part: outside.load_vggish(weights),
    "clap": lambda model, weights, part: outside.load_clap(weights),
    "encodec": lambda model, weights, part: outside.load_encodec(weights),
    "mert": lambda model, weights, part: outside.load_mert(weights, layer=_number(part)),
    "trill": lambda model, weights, part: saved.load_trill(weights, output=part),
    "saved-model": lambda model, weights, part: saved.load_saved(weights, part=part),
}
CLASSIFIERS: dict[str, Loader] = {
    "musicnn": EMBEDDINGS["musicnn"],
    "ast": lambda model, weights, part: outside.load_ast(weights),
    "passt": lambda model, weights, part: outside.load_passt(weights),
    "leaf": lambda model, weights, part: saved.load_saved(weights, part=part, kind="leaf"),
    "saved-model": EMBEDDINGS["saved-model"],
}
MATCHERS: dict[str, Loader] = {name: EMBEDDINGS[name] for name in ("mulan", "clap")}
# {name: (the pattern of what may follow its colon, what that is)}.
_LAYER = (r"[0-9]{1,3}", "the number of a layer, such as '{}:3'")
_OUTPUT = (r"[^@]+|[^@]*@[1-9][0-9]{3,5}", "an output and a rate, such as '{}:logits', '{}:@32000' or '{}:logits@32000'")
_PARTS = {"w2v-bert": _LAYER, "mert": _LAYER, "trill": (r"embedding|layer19", "one of its outputs, '{}:layer19'"), "leaf": _OUTPUT, "saved-model": _OUTPUT}
_OWN_WEIGHTS = ("vggish", "clap", "encodec", "mert", "trill", "saved-model", "ast", "passt", "leaf")


def load_embedding(name: str, *, model: str = "demo", weights: str | None = None) -> Embedding:
    """An embedding by its name.

    Args:
        name: one of EMBEDDINGS; "w2v-bert:LAYER" and "mert:LAYER" choose a layer, "trill:OUTPUT" and "saved-model:OUTPUT@RATE" an output.
        model: the bundle of "mulan", "w2v-bert" and "codec".
        weights: the folder, file or hub name of the weights of one from outside. None: those of its authors, which transformers downloads.

    Raises:
        UserError: the name is unknown, a package is missing, or the weights cannot be loaded.
    """
    return _load("embedding", EMBEDDINGS, name, model, weights)


def load_classifier(name: str, *, weights: str | None = None) -> Classifier:
    """A classifier by its name, one of CLASSIFIERS. Arguments and errors as in `load_embedding`."""
    return _load("classifier", CLASSIFIERS, name, "demo", weights)


def load_matcher(name: str, *, model: str = "demo", weights: str | None = None) -> Matcher:
    """A model for texts and music by its name, one of MATCHERS. Arguments and errors as in `load_embedding`."""
    return _load("judge", MATCHERS, name, model, weights)


def _load(what: str, known: dict[str, Loader], name: str, model: str, weights: str | None) -> Any:
    kind, colon, part = name.partition(":")
    if kind not in known:
        raise UserError(f"{what} {name!r}: choose one of {', '.join(known)}")
    pattern, meaning = _PARTS.get(kind, ("", ""))
    if colon and not (part and re.fullmatch(pattern, part)):
        raise UserError(f"{what} {name!r}: choose {kind!r} alone" + (f", or with {meaning.replace('{}', kind)}" if meaning else ""))
    if weights is not None and kind not in _OWN_WEIGHTS:
        raise UserError(f"{kind} has no --weights of its own: leave them out, or choose one of {', '.join(name for name in known if name in _OWN_WEIGHTS)}")
    return known[kind](model, weights, part or None)


def _number(part: str | None) -> int | None:
    return None if part is None else int(part)
