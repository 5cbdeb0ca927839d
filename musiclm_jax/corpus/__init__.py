"""Corpora of captioned music that is made from a seed, with captions and ground truth, in the layout that `musiclm fit` reads.

`synthesized` composes by rules and renders by a small synthesizer; `sampled` arranges tunes by people for sampled instruments. Both implement `clip.Corpus`;
`write` makes a folder of either. The package uses NumPy, SciPy and soundfile, not JAX.
"""

from musiclm_jax.corpus.clip import render_clip
from musiclm_jax.corpus.write import CORPORA, make_corpus

__all__ = ["CORPORA", "make_corpus", "render_clip"]
