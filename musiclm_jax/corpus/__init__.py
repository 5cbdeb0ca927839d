"""Our own captioned music: clips composed and synthesized from a seed, with captions and ground truth.

Attributes are drawn (`attributes`), turned into notes (`compose`), rendered (`voices`, `synthesis`), described
(`captions`) and written (`write`); a melody can be played again by others (`variants`). NumPy, SciPy and soundfile
only; no JAX.
"""

from musiclm_jax.corpus.write import Clip, make_corpus, render_clip, render_variant

__all__ = ["Clip", "make_corpus", "render_clip", "render_variant"]
