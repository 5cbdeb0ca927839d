"""Pieces that end: at the end of a section, which is on the tonic, one more bar holds the tonic chord; then there is silence.

Clips without an ending are cut after 30 s, wherever they are.
"""

from musiclm_jax.corpus.clip import CLIP_SEC, SAMPLE_RATE_HZ, clip_rng
from musiclm_jax.corpus.synthesized.attributes import Attributes
from musiclm_jax.corpus.synthesized.compose import LEAD_IN_SEC, Note, final_bar, form

# Silence after the last bar, in which its sound dies away.
_SILENCE_SEC = 2.5
# A piece is at least as long, so that it has crops of 10 s.
_LEAST_SEC = 12.0


def has_ending(*, seed: int, index: int, share: float) -> bool:
    """Whether clip `index` ends. Those of a share are among those of a larger one."""
    return bool(clip_rng(seed, index, "ending").random() < share)


def end(notes: list[Note], attributes: Attributes, *, seed: int, index: int) -> tuple[list[Note], int]:
    """The notes of a piece that ends within the clip, and its samples. All variants of a clip end at the same time. notes: of the clip or a variant."""
    rng = clip_rng(seed, index, "ending")
    rng.random()  # That of `has_ending`.
    bar_steps, (_, num_bars, section_bars) = 2 * attributes.beats_per_bar, form(attributes)
    seconds = {bar: LEAD_IN_SEC + (bar + 1) * bar_steps * 30 / attributes.tempo_bpm + _SILENCE_SEC for bar in range(section_bars, num_bars, section_bars)}
    last = int(rng.choice([bar for bar, length in seconds.items() if _LEAST_SEC <= length <= CLIP_SEC]))
    kept = [note for note in notes if note.step < last * bar_steps]
    lead, parts = [note for note in kept if note.part == "lead"][-1], {note.part for note in kept}
    final = final_bar(attributes, bar=last, lead_pitch=lead.pitch, rng=rng)
    return [*kept, *(note for note in final if note.part in parts)], round(seconds[last] * SAMPLE_RATE_HZ)
