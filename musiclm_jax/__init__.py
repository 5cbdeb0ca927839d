"""musiclm_jax: MusicLM (arXiv 2301.11325) in JAX and Flax, from text to 24 kHz music.

Use:

    from musiclm_jax import MusicLM
    music = MusicLM.from_pretrained("demo").generate(["a calm piano melody"], seconds=10, seed=0)
"""

__version__ = "0.1.0"
__all__ = ["MusicLM", "UserError"]


def __getattr__(name: str):
    # Imported lazily, so that `import musiclm_jax` is fast and initializes no device.
    if name == "MusicLM":
        from musiclm_jax.musiclm import MusicLM

        return MusicLM
    if name == "UserError":
        from musiclm_jax.errors import UserError

        return UserError
    raise AttributeError(f"module 'musiclm_jax' has no attribute {name!r}")
