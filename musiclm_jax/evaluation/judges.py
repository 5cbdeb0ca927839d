"""The names of judges, as users choose them: `load_embedding`, `load_classifier` and `load_matcher`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from musiclm_jax.arrays import Float
from musiclm_jax.errors import UserError
from musiclm_jax.evaluation import embeddings, outside
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

    def embed_clip(self, wave: Float[np.ndarray, "N"]) -> Float[np.ndarray, "D"]:
        """The unit embedding of a clip. Threads may call it at once."""
        ...

    def embed_texts(self, texts: Sequence[str]) -> Float[np.ndarray, "n D"]:
        """Unit embeddings of texts."""
        ...


# {name: from the bundle, the weights, and the layer or None}.
Loader = Callable[[str, str | None, int | None], Any]
EMBEDDINGS: dict[str, Loader] = {
    "musicnn": lambda model, weights, layer: embeddings.load_musicnn(),
    "mulan": lambda model, weights, layer: embeddings.load_mulan(model),
    "w2v-bert": lambda model, weights, layer: embeddings.load_w2v_bert(model, layer=layer),
    "codec": lambda model, weights, layer: embeddings.load_codec(model),
    "vggish": lambda model, weights, layer: outside.load_vggish(weights),
    "clap": lambda model, weights, layer: outside.load_clap(weights),
    "encodec": lambda model, weights, layer: outside.load_encodec(weights),
    "mert": lambda model, weights, layer: outside.load_mert(weights, layer=layer),
}
CLASSIFIERS: dict[str, Loader] = {"musicnn": EMBEDDINGS["musicnn"], "ast": lambda model, weights, layer: outside.load_ast(weights)}
MATCHERS: dict[str, Loader] = {name: EMBEDDINGS[name] for name in ("mulan", "clap")}
_LAYERED, _OWN_WEIGHTS = ("w2v-bert", "mert"), ("vggish", "clap", "encodec", "mert", "ast")


def load_embedding(name: str, *, model: str = "demo", weights: str | None = None) -> Embedding:
    """An embedding by its name.

    Args:
        name: one of EMBEDDINGS; "w2v-bert:LAYER" and "mert:LAYER" choose a layer.
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
    kind, colon, layer = name.partition(":")
    if kind not in known:
        raise UserError(f"{what} {name!r}: choose one of {', '.join(known)}")
    if colon and (kind not in _LAYERED or not (layer.isascii() and layer.isdigit() and len(layer) < 4)):
        raise UserError(f"{what} {name!r}: choose {kind!r} alone" + (f", or with the number of a layer, such as '{kind}:3'" if kind in _LAYERED else ""))
    if weights is not None and kind not in _OWN_WEIGHTS:
        raise UserError(f"{kind} has no --weights of its own: leave them out, or choose one of {', '.join(name for name in known if name in _OWN_WEIGHTS)}")
    return known[kind](model, weights, int(layer) if colon else None)
