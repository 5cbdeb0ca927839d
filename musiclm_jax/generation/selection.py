"""Selection of the best of several samples by MuLan. Ours, from no paper; off by default, but on in the small packaged model.

*Drafts* are semantic token sequences: every few seconds those nearest to the prompt are kept, and each is continued in several ways. *Candidates* are
clips in coarse codec levels: the one whose first `choose_sec` are nearest to the prompt is kept. The last choice among drafts depends on the length of the
clip, so that with drafts a short clip is not exactly the beginning of a longer one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping

import numpy as np

from musiclm_jax.arrays import Float, Int
from musiclm_jax.checks import SECONDS, SIZE, check_numbers
from musiclm_jax.models.tokenizers import MuLanTokenizer

# A score of a wave.
Prefer = Callable[[Float[np.ndarray, "N"]], float]


@dataclasses.dataclass(frozen=True)
class SelectionConfig:
    """How many drafts and candidates are sampled, and when drafts are selected. The paper samples one of each."""

    # Clips sampled for each one that is returned.
    num_candidates: int = 1
    # Semantic token sequences sampled for each candidate.
    num_drafts: int = 1
    # Seconds between selections: the best drafts so far are continued, each in `num_drafts` ways.
    draft_sec: float | int = 30.0
    # Candidates are compared by their first `choose_sec`.
    choose_sec: float | int = 10.0

    def __post_init__(self):
        check_numbers(self, num_candidates=SIZE, num_drafts=SIZE, draft_sec=SECONDS, choose_sec=SECONDS)

    def replace(self, *, num_candidates: int | None, num_drafts: int | None) -> SelectionConfig:
        """A copy with the numbers that are not None."""
        changes = {"num_candidates": num_candidates, "num_drafts": num_drafts}
        return dataclasses.replace(self, **{name: value for name, value in changes.items() if value is not None})


def choose_candidates(
    waves: Float[np.ndarray, "B N"], wanted: Mapping[MuLanTokenizer, Float[np.ndarray, "R D"]], *, prefer: Prefer | None = None
) -> Int[np.ndarray, "R"]:
    """The row of each clip's best candidate, by the sum of the judges' cosine similarities, and of what `prefer` finds of its wave.

    wanted: what each judge takes for the prompts of the clips.
    """
    scores = sum(cosines(judge.embed_audio(waves), texts) for judge, texts in wanted.items())
    return best_rows(scores if prefer is None else scores + np.reshape([prefer(wave) for wave in waves], scores.shape), keep=1)


def cosines(embeddings: Float[np.ndarray, "N D"], texts: Float[np.ndarray, "R D"]) -> Float[np.ndarray, "R C"]:
    """Cosine similarity of each of R texts and its C = N / R consecutive rows. Both inputs have unit length."""
    return np.einsum("rcd,rd->rc", embeddings.reshape(len(texts), -1, texts.shape[-1]), texts)


def best_rows(scores: Float[np.ndarray, "R C"], *, keep: int) -> Int[np.ndarray, "k"]:
    """Indices, among all R C rows, of the `keep` rows with the highest scores of each of R, best first; k = keep R."""
    best = np.argsort(-scores, axis=1, kind="stable")[:, :keep]
    return (best + scores.shape[1] * np.arange(len(scores))[:, None]).ravel()


def repeat(values: Iterable, times: int) -> list:
    """Each value `times` times: a, a, b, b."""
    return [value for value in values for _ in range(times)]
