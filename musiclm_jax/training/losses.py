"""Losses of the codecs and of the melody embedder, as functions from arrays to float32 scalars."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from musiclm_jax.arrays import Array, Bool, Float
from musiclm_jax.audio.features import magnitude, mel_filterbank, stft


def _mels(wave: Float[Array, "B N"], *, window: int, hop: int, num_fft: int, num_mels: int, sample_rate_hz: int) -> Float[Array, "B T M"]:
    """Mel magnitudes with bands from 0 Hz to half the sample rate, in frames as in `features.frame`."""
    spectrum = magnitude(stft(wave, window=window, hop=hop, num_fft=num_fft))
    filters = mel_filterbank(sample_rate_hz=sample_rate_hz, num_fft=num_fft, num_mels=num_mels, min_hz=0.0, max_hz=sample_rate_hz / 2)
    return jnp.einsum("btf,fm->btm", spectrum, filters, precision=jax.lax.Precision.HIGHEST)


def multi_scale_mel_loss(
    wave: Float[Array, "B N"],
    reference: Float[Array, "B N"],
    *,
    sample_rate_hz: int,
    windows: Sequence[int] = (64, 128, 256, 512, 1024, 2048),
    num_mels: Sequence[int] = (64,) * 6,
    floor: float = 1e-5,
) -> Float[Array, ""]:
    """Spectral reconstruction loss (SoundStream, arXiv 2107.03312, equations 4 and 5): L1 of mels plus alpha_s times L2 of log mels, for windows of length s.

    Deviations from the paper: Sums over frames and bands are means, and the L2 norm is a root mean square per frame, so that the loss depends neither
    on the length of the crop nor on the number of bands. The log terms, in nepers, are averaged with the weights alpha_s = sqrt(s / 2), divided by their
    sum. Windows shorter than 512 samples are zero-padded to 512, since a 64-sample spectrum has too few bins for 64 bands.

    Args:
        wave, reference: in [-1, 1].
        windows: window lengths s, in samples; the hop is s / 4.
        num_mels: mel bands for each window; the paper has 64 for all.
        floor: added to mel magnitudes before the logarithm.
    """
    linear, logarithmic, total = 0.0, 0.0, sum((s / 2) ** 0.5 for s in windows)
    for s, bands in zip(windows, num_mels, strict=True):
        mels = functools.partial(_mels, window=s, hop=s // 4, num_fft=max(512, s), num_mels=bands, sample_rate_hz=sample_rate_hz)
        ours, theirs = mels(wave), mels(reference)
        linear += jnp.mean(jnp.abs(ours - theirs)) / len(windows)
        difference = jnp.log(ours + floor) - jnp.log(theirs + floor)
        # The small constant keeps the gradient of the root finite where both are equal.
        rms = jnp.sqrt(jnp.mean(jnp.square(difference), axis=-1) + 1e-10) - 1e-5
        logarithmic += (s / 2) ** 0.5 / total * jnp.mean(rms)
    return linear + logarithmic


def mel_distance(wave: Float[Array, "B N"], reference: Float[Array, "B N"], *, sample_rate_hz: int) -> Float[Array, ""]:
    """The mel distance of two waves, as in the evaluation of descript-audio-codec. 0 is equal, lower is better.

    The distance is the sum, over 150 bands with a window of 2048 samples and 80 bands with a window of 512, of mean |log10 a^2 - log10 b^2| and mean
    |a - b|. a and b are mel magnitudes; in the logarithm they are at least 1e-5. Hops are a quarter of the window, frames are centred with reflected
    edges, the window is a periodic Hann, and the filters are Slaney's, from 0 Hz to half the sample rate.

    Raises:
        ValueError: fewer than 1025 samples.
    """
    if wave.shape[-1] <= 1024:
        raise ValueError(f"{wave.shape[-1]} samples: the reflected edges of the 2048-sample window need more than 1024")
    distance = 0.0
    for num_mels, window in ((150, 2048), (80, 512)):
        count = 1 + wave.shape[-1] // (window // 4)

        def mels(x, num_mels=num_mels, window=window, count=count):
            x = jnp.pad(x, ((0, 0), (window // 2, window // 2)), mode="reflect")
            return _mels(x, window=window, hop=window // 4, num_fft=window, num_mels=num_mels, sample_rate_hz=sample_rate_hz)[:, :count]

        a, b = mels(wave), mels(reference)
        # log10 x^2 = 2 log10 x
        distance += 2 * jnp.mean(jnp.abs(jnp.log10(jnp.maximum(a, 1e-5)) - jnp.log10(jnp.maximum(b, 1e-5)))) + jnp.mean(jnp.abs(a - b))
    return distance


def hinge_discriminator_loss(real: Sequence[jax.Array], fake: Sequence[jax.Array]) -> Float[Array, ""]:
    """Mean over discriminators and time of max(0, 1 - D(real)) + max(0, 1 + D(fake)) (SoundStream, equation 1). Inputs: the logits of each."""
    terms = [jnp.mean(jax.nn.relu(1 - r)) + jnp.mean(jax.nn.relu(1 + f)) for r, f in zip(real, fake, strict=True)]
    return sum(terms) / len(terms)


def hinge_generator_loss(fake: Sequence[jax.Array]) -> Float[Array, ""]:
    """Mean over discriminators and time of max(0, 1 - D(fake)) (SoundStream, equation 2). Input: the logits of each."""
    return sum(jnp.mean(jax.nn.relu(1 - f)) for f in fake) / len(fake)


def feature_loss(real: Sequence[Sequence[jax.Array]], fake: Sequence[Sequence[jax.Array]]) -> Float[Array, ""]:
    """Mean over discriminators and layers of the mean |D_l(real) - D_l(fake)| (SoundStream, equation 3).

    Inputs: the layers of each discriminator. The last one, the logits, is left out. No gradient flows to `real`.
    """
    terms = [
        jnp.mean(jnp.abs(jax.lax.stop_gradient(r).astype(jnp.float32) - f.astype(jnp.float32)))
        for one_real, one_fake in zip(real, fake, strict=True)
        for r, f in zip(one_real[:-1], one_fake[:-1], strict=True)
    ]
    return sum(terms) / len(terms)


def semi_hard_triplet_loss(distances: Float[Array, "B B"], same: Bool[Array, "B B"], *, margin: float) -> Float[Array, ""]:
    """FaceNet's triplet loss (arXiv 1503.03832, section 3) with one negative per anchor, mined in the batch: mean max(0, positive - negative + margin).

    The negative is the nearest one that is farther than the positive. Within the margin it is FaceNet's semi-hard negative; beyond the margin the loss
    is 0. If all negatives are nearer than the positive, the farthest one is taken: the hardest ones make all embeddings collapse to one point early in
    training, where the loss is the margin. An anchor without a negative has loss 0.

    Args:
        distances: squared distances of anchors (rows) to candidates (columns). The positive of each anchor is on the diagonal.
        same: True where anchor and candidate have the same label, so that the candidate is not a negative. It must be True on the diagonal.
        margin: of squared distances.
    """
    distances = distances.astype(jnp.float32)
    positive, negatives = jnp.diagonal(distances), jnp.logical_not(same)
    farther = negatives & (distances > positive[:, None])
    nearest = jnp.argmin(jnp.where(farther, distances, jnp.inf), axis=1)
    farthest = jnp.argmax(jnp.where(negatives, distances, -jnp.inf), axis=1)
    chosen = jnp.where(jnp.any(farther, axis=1), nearest, farthest)
    negative = jnp.take_along_axis(distances, chosen[:, None], axis=1)[:, 0]
    return jnp.mean(jnp.where(jnp.any(negatives, axis=1), jax.nn.relu(positive - negative + margin), 0.0))
