import jax
import jax.numpy as jnp
import numpy as np
import pytest

from musiclm_jax.errors import UserError
from musiclm_jax.models import codec
from musiclm_jax.models.spectral_codec import SpectralCodec, SpectralCodecConfig, add_noise, invert, log_magnitudes
from musiclm_jax.training.losses import mel_distance

TINY = SpectralCodecConfig(frame_samples=6, window_samples=20, encoder_width=8, decoder_width=6, dim=5, num_levels=3, num_codes=7)
FULL = SpectralCodecConfig(floor=1e-3)


def variables(config=TINY):
    import flax.linen as nn

    params = nn.meta.unbox(SpectralCodec(config).init(jax.random.key(0), jnp.zeros((1, 12)))["params"])
    codebooks = jax.random.normal(jax.random.key(1), (config.num_levels, config.num_codes, config.dim))
    return {"params": params, "quantizer": {"codebooks": codebooks}}


def wave(samples=66, batch=2):
    return 0.3 * jax.random.normal(jax.random.key(2), (batch, samples))


def chord(*notes_hz, seconds=1.0):
    t = jnp.arange(round(24_000 * seconds)) / 24_000
    return 0.2 * sum(jnp.sin(2 * jnp.pi * hz * t + hz) for hz in notes_hz)[None]


def test_lengths():
    v = variables()
    for samples, frames in ((1, 1), (6, 1), (7, 2), (66, 11)):
        codes = codec.encode(TINY, v, wave(samples))
        assert codes.shape == (2, frames, 3) and codes.dtype == jnp.int32
        assert codec.decode(TINY, v, codes).shape == (2, 6 * frames)


@pytest.mark.parametrize("chunks", [(11,), (1,) * 11, (2, 3, 5, 1)])
def test_streaming_is_offline(chunks):
    v = variables()
    codes = codec.encode(TINY, v, wave())
    offline = codec.decode(TINY, v, codes)
    carry, parts, start = codec.init_stream(TINY, v, 2), [], 0
    for size in chunks:
        part, carry = codec.decode_stream(TINY, v, codes[:, start : start + size], carry)
        assert part.shape == (2, 6 * size)
        parts.append(part)
        start += size
    np.testing.assert_allclose(jnp.concatenate(parts, axis=1), offline, atol=1e-5)


def test_decoding_is_causal():
    v = variables()
    codes = codec.encode(TINY, v, wave())
    other = codes.at[:, 7:].set((codes[:, 7:] + 1) % 7)
    one, two = codec.decode(TINY, v, codes), codec.decode(TINY, v, other)
    np.testing.assert_array_equal(one[:, :42], two[:, :42])
    assert jnp.any(one[:, 42:48] != two[:, 42:48])


def test_tones_come_back_at_their_pitch_without_beating():
    # 17 cents apart from any bin, and no multiples of the frame rate.
    back, _ = invert(FULL, log_magnitudes(FULL, chord(443.3, 661.7)))
    middle = np.asarray(back[0, 4800:19_200]) * np.hanning(14_400)
    spectrum = np.abs(np.fft.rfft(middle, 2**18))
    hz = np.arange(len(spectrum)) * 24_000 / 2**18
    for note in (443.3, 661.7):
        near = np.flatnonzero(abs(hz - note) < 20)
        assert abs(hz[near[spectrum[near].argmax()]] - note) < 0.5
    level = np.sqrt(np.mean(np.square(np.asarray(back[0, 4800:19_200]).reshape(-1, 2400)), axis=1))
    np.testing.assert_allclose(level, 0.2, rtol=0.05)


def test_phases_that_go_on_beat_any_others():
    wave = chord(220.0, 277.2, 329.6, 1108.7)
    spectrum = log_magnitudes(FULL, wave)
    distance = lambda x: float(mel_distance(x[:, :24_000], wave, sample_rate_hz=24_000))  # noqa: E731
    ours = distance(invert(FULL, spectrum)[0])
    # The same frames, each of whose phases begins anew.
    alone = jnp.concatenate([invert(FULL, spectrum[:, t : t + 1])[0] for t in range(spectrum.shape[1])], axis=1)
    assert ours < 0.6 * distance(alone)


def test_silence_is_silent_and_finite():
    back, _ = invert(FULL, log_magnitudes(FULL, jnp.zeros((1, 4800))))
    assert jnp.abs(back).max() < 1e-4


def test_full_noisiness_fluctuates_like_white_noise():
    noise = jax.random.normal(jax.random.key(3), (1, 100 * FULL.frame_samples))
    theirs = log_magnitudes(FULL, noise)[:, :-4, 1:-1]
    flat = jnp.full((1, 96, FULL.num_bins), jnp.mean(theirs))
    ours = add_noise(FULL, flat, jnp.ones_like(flat), 0)[..., 1:-1]
    for spread in (lambda x: jnp.mean(x), lambda x: jnp.std(x), lambda x: jnp.mean(jnp.abs(jnp.diff(x, axis=1))), lambda x: jnp.mean(jnp.abs(jnp.diff(x)))):
        np.testing.assert_allclose(spread(ours), spread(theirs), rtol=0.03, atol=0.02)
    np.testing.assert_array_equal(add_noise(FULL, flat, jnp.zeros_like(flat), 0), flat)


def test_noise_goes_on_from_chunk_to_chunk():
    flat = jnp.zeros((1, 9, FULL.num_bins))
    whole = add_noise(FULL, flat, jnp.ones_like(flat), 2)
    np.testing.assert_allclose(add_noise(FULL, flat[:, 4:], jnp.ones_like(flat[:, 4:]), 6), whole[:, 4:], atol=1e-4)
    assert jnp.abs(whole[:, :5] - whole[:, 4:]).mean() > 0.3


def test_nonsense_is_refused():
    with pytest.raises(UserError, match="window_samples=700"):
        SpectralCodecConfig(window_samples=700)
    with pytest.raises(UserError, match="encoder_width=3"):
        SpectralCodecConfig(encoder_width=3)
