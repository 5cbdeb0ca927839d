"""Makes the clips of `musiclm generate`, writes them, and says what was made."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import json
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from musiclm_jax.cli.options import short
from musiclm_jax.cli.recipe import ClipRecipe
from musiclm_jax.progress import OnProgress
from musiclm_jax.records import to_dict

if TYPE_CHECKING:
    from musiclm_jax.evaluation.exact import Facts
    from musiclm_jax.musiclm import MusicLM


@dataclasses.dataclass(frozen=True)
class Made:
    """A clip that was written."""

    path: Path
    seconds: float
    recipe: ClipRecipe
    # Whether Ctrl-C ended it.
    is_cut: bool = False
    # What was estimated, of a clip with exact wishes, and the names of those that it does not meet.
    facts: Facts | None = None
    missed: tuple[str, ...] = ()
    # The closest training passage, of a clip that was compared with an index.
    passage: str | None = None

    def __str__(self) -> str:
        wanted = ", then ".join(text for _, text in self.recipe.story) or ", ".join(Path(file).name for file in self.recipe.recordings.values()) or "no prompt"
        lines = [f"{self.path}  {self.seconds:.2f} s  seed {self.recipe.seed}  {short(wanted)}"]
        if self.facts is not None:
            wrong = f", which is not the {' and '.join(self.missed)} that was asked for" if self.missed else ""
            lines.append(f"{self.path}  estimated: {self.facts}{wrong}")
        return "\n".join(lines if self.passage is None else [*lines, f"{self.path}  closest to {self.passage}"])

    def to_json(self) -> str:
        found: dict[str, Any] = {"file": str(self.path), "length_sec": round(self.seconds, 6), **to_dict(self.recipe)}
        if self.facts is not None:
            found |= {"estimated": dataclasses.asdict(self.facts), "missed": list(self.missed)}
        return json.dumps(found | ({} if self.passage is None else {"closest": self.passage}), ensure_ascii=False)


def make_one(musiclm: MusicLM, recipe: ClipRecipe, path: Path, *, on_progress: OnProgress) -> Made:
    """Makes a clip of any length, piece by piece. Ctrl-C ends it after a piece. A file in a bucket is written at the end."""
    import numpy as np

    from musiclm_jax.audio.writer import open_writer
    from musiclm_jax.files import is_bucket

    rate = musiclm.config.audio.sample_rate_hz
    stream = musiclm.stream(**_with_prompt(recipe), sample=recipe.sample, on_progress=on_progress)
    if is_bucket(path):
        return write(np.concatenate(list(stream), axis=1)[0], recipe, path, sample_rate_hz=rate)
    with contextlib.ExitStack() as stack:
        stopped, file = stack.enter_context(stop_at_interrupt()), None
        for piece in stream:  # Until the first one is there, an older file stays.
            file = file or stack.enter_context(open_writer(path, sample_rate_hz=rate, comment=str(recipe)))
            file.write(piece[0])
            if stopped():
                break
        return Made(path, stream.seconds, recipe, is_cut=stopped() and stream.seconds < recipe.seconds)


def mix_with_voice(band: Made, *, sample_rate_hz: int) -> Made:
    """Mixes a band with the voice that it accompanies, and writes the mix beside the band, as NAME-mix."""
    from musiclm_jax import audio
    from musiclm_jax.generation.voice import mix

    waves = [audio.read(path, sample_rate_hz=sample_rate_hz) for path in (band.path, Path(band.recipe.recordings["voice"]))]
    return write(mix(*waves, sample_rate_hz=sample_rate_hz), band.recipe, mixed_path(band.path), sample_rate_hz=sample_rate_hz)


def mixed_path(path: Path) -> Path:
    """The file of the mix of a band with its voice."""
    return path.with_name(f"{path.stem}-mix{path.suffix}")


def make_exact(musiclm: MusicLM, recipe: ClipRecipe, path: Path, *, tries: int, on_progress: OnProgress) -> Made:
    """Makes a clip up to `tries` times, and writes the one that meets most of its exact wishes."""
    from musiclm_jax.evaluation.exact import ExactWishes, make_exactly

    arguments = {name: value for name, value in _with_prompt(recipe).items() if name != "prefer"}
    wishes = ExactWishes(**recipe.exact)
    clip = make_exactly(musiclm, arguments.pop("prompt"), wishes, tries=tries, sample=recipe.sample, on_progress=on_progress, **arguments)
    made = write(clip.wave, dataclasses.replace(recipe, sample=clip.sample), path, sample_rate_hz=musiclm.config.audio.sample_rate_hz)
    return dataclasses.replace(made, facts=clip.facts, missed=clip.missed)


def make_several(musiclm: MusicLM, recipe: ClipRecipe, prompts: Sequence[str | None], paths: Sequence[Path], *, on_progress: OnProgress) -> list[Made]:
    """Makes clips together: `len(paths) / len(prompts)` of each prompt, or of the story."""
    samples = len(paths) // max(1, len(prompts))
    music = musiclm.generate(prompts, **recipe.arguments(), num_samples=samples, on_progress=on_progress)
    made, seen = [], collections.Counter()
    for path, wave, prompt in zip(paths, music.wave, music.prompts, strict=True):
        number = seen[musiclm.text.normalize(prompt)]  # Prompts that are read alike are one.
        seen[musiclm.text.normalize(prompt)] += 1
        own = dataclasses.replace(recipe, sample=number, story=recipe.story if not prompts else ((0.0, prompt),) if prompt else ())
        made.append(_judge(write(wave, own, path, sample_rate_hz=music.sample_rate_hz), wave))
    return made


def _judge(made: Made, wave) -> Made:
    """With what is estimated of the wave, if there are exact wishes."""
    if not made.recipe.exact:
        return made
    from musiclm_jax.evaluation.exact import ExactWishes, measure

    facts = measure(wave)
    return dataclasses.replace(made, facts=facts, missed=ExactWishes(**made.recipe.exact).missed(facts))


def _with_prompt(recipe: ClipRecipe) -> dict[str, Any]:
    """The arguments of `MusicLM.stream`."""
    return recipe.arguments() | ({} if recipe.is_story else {"prompt": recipe.prompt})


def write(wave, recipe: ClipRecipe, path: Path, *, sample_rate_hz: int) -> Made:
    """Writes a whole clip, or nothing."""
    from musiclm_jax.audio.writer import open_writer
    from musiclm_jax.files import atomic_path

    with atomic_path(path) as temporary, open_writer(temporary, sample_rate_hz=sample_rate_hz, comment=str(recipe), suffix=path.suffix) as file:
        file.write(wave)
    return Made(path, len(wave) / sample_rate_hz, recipe)


@contextlib.contextmanager
def stop_at_interrupt():
    """Yields a function that says whether Ctrl-C was pressed. A second time it stops at once."""
    pressed = []

    def handler(number, frame):
        if pressed:
            signal.signal(number, before)
            return os.kill(os.getpid(), number)
        pressed.append(number)
        os.write(2, b"\nstopping after this piece, which is kept with those before it; a second Ctrl-C stops at once\n")

    before = signal.signal(signal.SIGINT, handler)
    try:
        yield lambda: bool(pressed)
    finally:
        signal.signal(signal.SIGINT, before)


def find_copies(musiclm: MusicLM, index: Any, made: Sequence[Made]) -> list[Made]:
    """The clips with their closest training passages."""
    from musiclm_jax import audio
    from musiclm_jax.evaluation.token_index import check_copies, format_passage

    found = []
    for clip in made:
        (passage,) = check_copies(musiclm, index, audio.read(clip.path, sample_rate_hz=musiclm.config.audio.sample_rate_hz)[None])
        found.append(dataclasses.replace(clip, passage=format_passage(passage, index)))
    return found


def numbered(path: Path, count: int) -> list[Path]:
    """The paths of `count` clips: [path] for one clip, otherwise path with -1, -2, ... before the suffix."""
    return [path] if count == 1 else [path.with_name(f"{path.stem}-{i}{path.suffix}") for i in range(1, count + 1)]
