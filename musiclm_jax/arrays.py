"""The legend of dimensions: one letter, one meaning, everywhere in this package.

    B  batch                         H  attention heads
    N  samples of a wave             K  width of one head
    T  frames, tokens, or query      F  width of a feed-forward block, or STFT frequencies
       positions                     Q  levels of a residual vector quantizer
    S  key positions                 C  codes of one codebook
    D  width of a model or vector    V  vocabulary
    M  mel bins                      L  layers

Annotations such as `wave: Float[Array, "B N"]` are checked in the tests (jaxtyping + beartype) and are free at run time.
"""

from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, Shaped

Key = PRNGKeyArray | Shaped[Array, "2"]  # A typed key, or a raw uint32 pair.

__all__ = ["Array", "Bool", "Float", "Int", "Key", "Shaped"]
