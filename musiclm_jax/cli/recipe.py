"""How a clip is made: what the options of `musiclm generate` say, what stays with the file as a text, and what `--again` reads."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

from musiclm_jax.errors import UserError
from musiclm_jax.files import as_path
from musiclm_jax.records import from_dict, to_dict

# Arguments of `MusicLM.stream` that are recordings.
RECORDINGS = ("like", "beginning", "resynthesize", "voice", "melody")


@dataclasses.dataclass(frozen=True)
class ClipRecipe:
    """All that decides a clip, apart from the machine."""

    # (second, prompt) pairs. Empty: no prompt.
    story: tuple[tuple[float, str], ...]
    seed: int
    seconds: float
    # Number of the clip among those of its prompt, from 0 on.
    sample: int
    num_candidates: int
    num_drafts: int
    # {stage: {field of SamplingConfig: value}}, of all stages.
    sampling: dict[str, dict[str, float]]
    # {one of `RECORDINGS`: file} that were given.
    recordings: dict[str, str]
    musiclm_jax: str
    jax: str
    # As given, and the hash of its weights (`pretrained.digest`).
    model: str = ""
    model_sha256: str = ""
    fade: float = 0.0
    without: tuple[str, ...] = ()
    ending: bool = False
    # {name: SHA-256 of its file}, of `recordings`.
    recordings_sha256: dict[str, str] = dataclasses.field(default_factory=dict)
    # The fields of `evaluation.exact.ExactWishes` that were given.
    exact: dict[str, float | str] = dataclasses.field(default_factory=dict)

    def __str__(self) -> str:
        return json.dumps(to_dict(self), ensure_ascii=False)

    @property
    def is_story(self) -> bool:
        """Whether it has more than a prompt from 0 on."""
        return len(self.story) > 1 or bool(self.story) and self.story[0][0] > 0

    @property
    def prompt(self) -> str | None:
        return self.story[0][1] if self.story else None

    def arguments(self) -> dict[str, Any]:
        """Those of `MusicLM.stream`, and of `generate` where there are no recordings but a melody; without the prompts of clips that have no story."""
        from musiclm_jax.evaluation.exact import ExactWishes, scorer

        names = ("seconds", "seed", "num_candidates", "num_drafts", "sampling", "fade", "without")
        found = {name: getattr(self, name) for name in names}
        found |= {"story": self.story} if self.is_story else {}
        found |= {"prefer": scorer(ExactWishes(**self.exact))} if self.exact else {}
        return found | self.recordings | {"ending": self.ending}


def find_recordings(recipe: ClipRecipe, folder: Path) -> tuple[ClipRecipe, list[str]]:
    """The recipe with its recordings where they are, here or in a folder, and their hashes; and those that have changed since. UserError: one is not there."""
    found, hashes = {}, {}
    for name, file in recipe.recordings.items():
        path = next((path for path in (as_path(file), folder / file) if path.exists()), None)
        if path is None:
            raise UserError(f"{file}: no such file")
        found[name], hashes[name] = str(path), hashlib.sha256(path.read_bytes()).hexdigest()
    changed = [found[name] for name, known in recipe.recordings_sha256.items() if hashes[name] != known]
    return dataclasses.replace(recipe, recordings=found, recordings_sha256=hashes), changed


def read_recipe(path: Path) -> ClipRecipe:
    """The recipe of a file. Raises UserError if it has none."""
    from musiclm_jax.audio.writer import read_comment
    from musiclm_jax.configs import without_former

    try:
        found: Any = json.loads(read_comment(path))
        return from_dict(ClipRecipe, without_former(found), where="")
    except (ValueError, UserError) as error:
        if isinstance(error, UserError) and str(path) in str(error):
            raise
        raise UserError(f"{path}: does not say how it was made; name a WAV or FLAC file that `musiclm generate` wrote") from error


def read_story(path: Path) -> list[tuple[float, str]]:
    """The lines of a story, "M:SS prompt", as (second, prompt). Raises UserError where a line is no such line."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as UTF-8 text ({error}): write lines such as 0:15 time to wake up") from error
    story = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        when, _, prompt = line.strip().partition(" ")
        try:
            parts = [float(part) for part in when.split(":")]
            if not 1 < len(parts) <= 3 or min(parts) < 0 or max(parts[1:]) >= 60 or not prompt.strip():
                raise ValueError
        except ValueError:
            raise UserError(f"{path} line {number} is {line.strip()!r}: write a time and a prompt, such as 0:15 time to wake up") from None
        story.append((sum(part * 60**power for power, part in enumerate(reversed(parts))), prompt.strip()))
    if not story:
        raise UserError(f"{path} has no lines: write some such as 0:15 time to wake up")
    return story
