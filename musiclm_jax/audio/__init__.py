"""Audio files and loudness. Spectrograms are in `audio.features`."""

from musiclm_jax.audio.files import SAMPLE_RATE_HZ, check_writable, decode, read, write_wav

__all__ = ["SAMPLE_RATE_HZ", "check_writable", "decode", "read", "write_wav"]
