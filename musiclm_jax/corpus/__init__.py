"""A synthetic corpus of captioned music: clips are composed and rendered from a seed, with captions and ground truth.

Attributes are drawn (`attributes`), turned into notes (`compose`), rendered (`voices`, `synthesis`), described (`captions`) and written (`write`).
`variants` renders the melody of a clip with other instruments, hums it or whistles it. The package uses NumPy, SciPy and soundfile, not JAX.
"""

from musiclm_jax.corpus.write import Clip, make_corpus, render_clip, render_variant

__all__ = ["Clip", "make_corpus", "render_clip", "render_variant"]
