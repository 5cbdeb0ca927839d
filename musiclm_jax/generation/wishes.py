"""What music should be, and when: prompts, mixtures of prompts, what is excluded, and stories, in which these change.

A mixture "0.7: calm piano | 0.3: techno" is the weighted mean of the embeddings of its prompts, as in Magenta RealTime (arXiv 2508.04651, section 3.1). What is
excluded, by an argument or by "without drums" in the prompt, is named once more at the end of the prompt ("no drums", which text towers follow best), is in the
branch that classifier-free guidance pushes away from, in the place of "no conditions" (the negative prompts of image models), and lowers the score of
candidates and drafts that resemble it. docs/steering.md has the measurements. Neither is in the MusicLM paper; its story mode (arXiv 2301.11325, section 4.3)
changes the text.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence

import numpy as np

from musiclm_jax.arrays import Float, Int
from musiclm_jax.errors import UserError
from musiclm_jax.generation.selection import repeat
from musiclm_jax.models.tokenizers import MuLanTokenizer
from musiclm_jax.tokens import ABSENT

# (second, prompt) pairs, from 0 on, in order.
Story = Sequence[tuple[float | int, str]]
# "0.7: calm piano": a share and a prompt.
_SHARE = re.compile(r"\s*(\d{0,9}[.,]?\d{1,9})\s*:(.*)", re.DOTALL)
# "without any drums", "with no drums", "no drums".
_NEGATION = re.compile(r"\b(?:without|no)\s+(?:(?:any|a|an|the)\s+)?([^\W\d_]{3,})", re.IGNORECASE)
# Seconds between the mixtures of a fade.
_FADE_STEP_SEC = 1.0
# How much resembling what is excluded counts against resembling the prompt, in scores.
_AWAY = 0.5


@dataclasses.dataclass(frozen=True)
class Wish:
    """What one clip should be from some second on."""

    # As it was written. Clips with the same text have the same random keys.
    text: str = ""
    # (share, prompt) pairs, whose shares sum to 1. Empty: no prompt.
    parts: tuple[tuple[float, str], ...] = ()
    # What should not be heard.
    without: tuple[str, ...] = ()

    @property
    def texts(self) -> tuple[str, ...]:
        """All texts that the text tower reads."""
        return (*(text for _, text in self.parts), *self.without)


# (second from which on it holds, a wish for each clip): from 0 on, in order.
Script = Sequence[tuple[float, Sequence[Wish]]]


def parse_wish(text: str | None, *, without: Sequence[str] = ()) -> Wish:
    """The wish of a prompt, or of prompts with "|" between them, each with its share before a colon; all or none have one. None: of no prompt.

    without: what is excluded, beside what the prompt itself says so of: "without drums", "no drums".

    Raises:
        UserError: a prompt of a mixture is empty, some have no share, or their sum is 0; what is excluded is empty.
    """
    for excluded in without:
        if not excluded.strip() or not _is_text(excluded):
            raise UserError(f"what is excluded is {excluded!r}: name what should not be heard, such as 'drums', or leave it out")
    if text is None:
        return Wish(without=tuple(without))
    without = tuple(dict.fromkeys([*without, *_NEGATION.findall(text)]))
    if "|" not in text:
        return Wish(text, ((1.0, text),), without)
    found = [_SHARE.fullmatch(each) for each in text.split("|")]
    shares = [float(match[1].replace(",", ".")) if match else None for match in found]
    if all(share is None for share in shares):
        shares, prompts = [1.0] * len(found), text.split("|")
    else:
        prompts = [match[2] if match else "" for match in found]
    if not all(prompt.strip() for prompt in prompts) or not sum(shares):
        raise UserError(f"the mixture {text!r}: write a share and a prompt for each part, such as '0.7: calm piano | 0.3: techno'")
    total = sum(shares)
    return Wish(text, tuple((share / total, prompt.strip()) for share, prompt in zip(shares, prompts, strict=True)), without)


def _is_text(text: str) -> bool:
    """Whether a text is valid Unicode. An argument of a command need not be."""
    return text == text.encode(errors="ignore").decode()


def mix(before: Wish, after: Wish, share: float | int) -> Wish:
    """A wish between two. share: of `after`."""
    parts = [(weight * part, text) for wish, weight in ((before, 1 - share), (after, share)) for part, text in wish.parts]
    return Wish(after.text, tuple(parts), after.without)


def make_script(
    prompts: Sequence[str | None],
    story: Story | None,
    *,
    without: Sequence[str] = (),
    fade: float | int = 0,
    num_samples: int = 1,
    seconds: float | int | None = None,
) -> Script:
    """The wishes of all clips, and when they change.

    Args:
        without: what is excluded all along.
        fade: seconds, around the time of each line of a story, in which the mixture goes over to the new line.

    Raises:
        UserError: the times of a story do not rise from 0, or are beyond the end; a fade is longer than a line lasts; `parse_wish`.
    """
    if story is None:
        if fade:
            raise UserError(f"fade={fade:g} without a story: a fade goes from one line of a story to the next")
        return [(0.0, repeat([parse_wish(prompt, without=without) for prompt in prompts], num_samples))]
    if len(prompts):
        raise UserError("a story has its own prompts: give the prompt as its first line, or leave the story out")
    times = [float(time) for time, _ in story]
    if min(times) != 0:
        raise UserError(f"the story begins at {min(times):g} s: give a prompt for 0:00 first")
    for before, after in zip(times, times[1:]):
        if not after > before:
            raise UserError(f"the story has {after:g} s after {before:g} s: put its lines in the order of their times, one for each")
        if not 0 <= fade <= after - before:
            raise UserError(f"fade={fade:g}: the line at {before:g} s lasts {after - before:g} s: choose a fade from 0 to that")
    if seconds is not None and times[-1] >= seconds:
        raise UserError(f"the story has a line at {times[-1]:g} s, and the music ends at {seconds:g} s: make it longer, or leave that line out")
    wishes = [parse_wish(text, without=without) for _, text in story]
    script = [(0.0, wishes[0])]
    for time, before, after in zip(times[1:], wishes, wishes[1:]):
        steps = math.ceil(fade / _FADE_STEP_SEC)
        script += [(time + fade * (step / steps - 0.5), mix(before, after, (step + 1) / (steps + 1))) for step in range(steps)]
        script.append((time + fade / 2, after))
    return [(time, [wish] * num_samples) for time, wish in script]


def embed_wishes(judge: MuLanTokenizer, wishes: Sequence[Wish], *, away: float | int = _AWAY) -> Float[np.ndarray, "R D"]:
    """Unit embeddings of wishes with a prompt. away: the share of what is excluded, which is subtracted."""
    each = []
    for wish in wishes:
        no = [words for words in map("no {}".format, wish.without) if not judge.unknown_words(words)[0]]
        parts = [(share, ", ".join([text, *(words for words in no if f", {words}" not in text)])) for share, text in wish.parts]
        each.append([*parts, *((-away / len(wish.without), text) for text in wish.without if away)])
    texts = list(dict.fromkeys(text for terms in each for _, text in terms))
    known = dict(zip(texts, judge.embed_text(texts), strict=True))
    rows = []
    for terms in each:
        if len(terms) == 1:  # It has unit length.
            rows.append(known[terms[0][1]])
            continue
        row = np.sum([share * known[text] for share, text in terms], axis=0)
        rows.append(row / max(float(np.linalg.norm(row)), 1e-6))
    return np.stack(rows)


def wish_tokens(mulan: MuLanTokenizer, wishes: Sequence[Wish]) -> Int[np.ndarray, "R Q"]:
    """MuLan tokens of what wishes want, int32. Without a prompt: ABSENT."""
    tokens = np.full((len(wishes), mulan.config.num_levels), ABSENT, np.int32)
    some = [number for number, wish in enumerate(wishes) if wish.parts]
    if some:
        tokens[some] = mulan.quantize_text(embed_wishes(mulan, [wishes[number] for number in some], away=0))
    return tokens


def excluded_tokens(mulan: MuLanTokenizer, wishes: Sequence[Wish]) -> Int[np.ndarray, "R Q"]:
    """MuLan tokens of what wishes exclude, int32. Where they exclude nothing: ABSENT."""
    return wish_tokens(mulan, [Wish(parts=tuple((1 / len(wish.without), text) for text in wish.without)) for wish in wishes])
