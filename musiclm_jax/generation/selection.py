"""Selection of the best of several samples by MuLan. Ours, from no paper; off by default, but on in the small packaged model.

*Drafts* are semantic token sequences: every few seconds those nearest to the prompt are kept, and each is continued in several ways. *Candidates* are
clips in coarse codec levels: the one nearest to the prompt is kept. The choice depends on the whole draft or clip, so that with selection a short clip
is not exactly the beginning of a longer one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from musiclm_jax.arrays import Float, Int
from musiclm_jax.checks import SECONDS, SIZE, check_numbers
from musiclm_jax.generation.sampler import Keys
from musiclm_jax.models.tokenizers import MuLanTokenizer
from musiclm_jax.progress import OnProgress
from musiclm_jax.specs import AudioSpec


@dataclasses.dataclass(frozen=True)
class SelectionConfig:
    """How many drafts and candidates are sampled, and when drafts are selected. The paper samples one of each."""

    # Clips sampled for each one that is returned.
    num_candidates: int = 1
    # Semantic token sequences sampled for each candidate.
    num_drafts: int = 1
    # Seconds between selections: the best drafts so far are continued, each in `num_drafts` ways.
    draft_sec: float | int = 30.0

    def __post_init__(self):
        check_numbers(self, num_candidates=SIZE, num_drafts=SIZE, draft_sec=SECONDS)

    def replace(self, *, num_candidates: int | None, num_drafts: int | None) -> SelectionConfig:
        """A copy with the numbers that are not None."""
        changes = {"num_candidates": num_candidates, "num_drafts": num_drafts}
        return dataclasses.replace(self, **{name: value for name, value in changes.items() if value is not None})


def choose_drafts(
    draw: Callable[..., Int[np.ndarray, "B T 1"]],
    reranker: MuLanTokenizer,
    streams: Mapping[str, np.ndarray],
    keys: Keys,
    clips: Sequence[str],
    *,
    config: SelectionConfig,
    spec: AudioSpec,
    steps: int,
    asked: int,
    on_progress: OnProgress | None = None,
) -> tuple[Int[np.ndarray, "k T 1"], Int[np.ndarray, "k"]]:
    """Draws and selects the semantic tokens: [k, `steps`, 1] codes of `num_candidates` drafts per clip, and which rows of `keys` drew them.

    Selection happens each `draft_sec` and after `asked` tokens. The tokens from `asked` to `steps`, which only later stages read, are not selected.

    Args:
        draw: `MusicLM.draw_stage` of the semantic stage.
        reranker: a MuLan that reads semantic tokens. A draft's score is the cosine similarity of its last window and the prompt.
        streams: the conditions, a row for each of `keys`.
        keys: those of all drafts, `num_candidates` times `num_drafts` for each clip.
        clips: the prompt of each clip.
    """
    texts, window = reranker.embed_text(clips), spec.semantic_tokens(reranker.config.window_sec)
    total, kept, rows = len(keys) * asked, None, None
    report = on_progress and (lambda name, done, _: on_progress(name, done, total))
    for end in [*range(spec.semantic_tokens(config.draft_sec), asked, spec.semantic_tokens(config.draft_sec)), asked]:
        # A prompt that is continued in several ways, and its conditions, are read once.
        conditions = streams if kept is None else {name: stream[:: config.num_drafts] for name, stream in streams.items()}
        drafts = draw(conditions, steps=end, keys=keys, prompt=kept, on_progress=report)
        embeddings = reranker.embed_semantic(drafts[:, -window:, 0], token_samples=spec.semantic_samples)
        rows = best_rows(cosines(embeddings, texts), keep=config.num_candidates)
        kept = drafts[rows]
    if steps > asked:
        kept = draw({name: stream[rows] for name, stream in streams.items()}, steps=steps, keys=keys[rows], prompt=kept, on_progress=None)
    return kept, rows


def choose_candidates(judges: Sequence[MuLanTokenizer], waves: Float[np.ndarray, "B N"], clips: Sequence[str]) -> Int[np.ndarray, "R"]:
    """The row of each clip's best candidate, by the sum of the judges' cosine similarities to its prompt."""
    return best_rows(sum(cosines(judge.embed_audio(waves), judge.embed_text(clips)) for judge in judges), keep=1)


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
