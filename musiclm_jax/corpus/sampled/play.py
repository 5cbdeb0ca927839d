"""Plays a score: each part by a sampled instrument, mixed as a record is."""

import numpy as np
from jaxtyping import Float

from musiclm_jax.corpus.clip import SAMPLE_RATE_HZ
from musiclm_jax.corpus.sampled import kits, mixing, soundfonts
from musiclm_jax.corpus.sampled.attributes import PARTS, Attributes
from musiclm_jax.corpus.sampled.instruments import INSTRUMENTS
from musiclm_jax.corpus.sampled.score import Score
from musiclm_jax.corpus.sampled.soundfonts import Program, Tone, draw_soundfont

# Tells the random numbers of the sound from those of other steps with the same seed and index.
_STREAM = int.from_bytes(b"play")


def play(score: Score, *, seed: int, index: int, variant: int = 0) -> dict[str, Float[np.ndarray, " N"]]:
    """Renders a score, and its stems.

    Programs, soundfonts, kit, levels, room and the rest of the sound are drawn by `seed`, `index` and `variant`, each at least 0. On one machine the samples
    depend on the arguments alone, not on what was rendered before.

    Returns:
        "mix", and "lead" and "band", which add up to it but for hiss of 5e-4; float32 [round(24,000 length_sec)] each, in [-1, 1].

    Raises:
        UserError: FluidSynth, a soundfont or the recordings of drums are missing. The message says what to install.
    """
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([_STREAM, seed, index, variant])))
    num_samples = round(score.length_sec * SAMPLE_RATE_HZ)
    attributes, played = score.attributes, {note.part for note in score.notes}
    programs = _programs(attributes, rng)
    parts = {part: _render(part, score, programs, num_samples, rng) for part in PARTS if part in played}
    return mixing.master(
        mixing.balance(parts, rng=rng),
        num_samples=num_samples,
        room=attributes.room,
        colour=attributes.colour,
        dynamics=attributes.dynamics,
        rng=rng,
    )


def _programs(attributes: Attributes, rng: np.random.Generator) -> dict[str, Program]:
    """Part -> what plays it, but for drums. Two parts for one instrument are played by the same one."""
    names = {"lead": attributes.instrument} | {part: getattr(attributes, part) for part in ("counter", "chords", "pad", "bass")}
    present = dict.fromkeys(name for name in names.values() if name)
    drawn = {name: Program(draw_soundfont(rng), int(rng.choice(INSTRUMENTS[name].programs))) for name in present}
    return {part: drawn[name] for part, name in names.items() if name}


def _render(part: str, score: Score, programs: dict[str, Program], num_samples: int, rng: np.random.Generator) -> Float[np.ndarray, " N"]:
    """A part alone, without a room."""
    notes = [note for note in score.notes if note.part == part and note.start_sec < score.length_sec]
    tones = [Tone(note.pitch, note.start_sec, note.start_sec + note.length_sec, note.velocity) for note in notes]
    if part == "drums":
        return kits.render(tones, score.attributes.kit, num_samples=num_samples, rng=rng)
    return soundfonts.render(tones, programs[part], num_samples=num_samples)
