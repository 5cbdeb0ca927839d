"""Losses of the codec and of the melody embedder: arrays in, float32 scalars out."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from musiclm_jax.arrays import Array, Bool, Float
from musiclm_jax.audio.features import magnitude, mel_filterbank, stft


def _mels(wave: Float[Array, "B N"], *, window: int, hop: int, num_fft: int, num_mels: int, sample_rate_hz: int) -> Float[Array, "B T M"]:
    """Mel magnitudes over the whole band, frames as in `features.frame`."""
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
    """Spectral reconstruction loss (SoundStream, equations 4 and 5): L1 of mels plus alpha_s times L2 of log mels, alpha_s = sqrt(s / 2).

    Deviations. Sums over frames and bands are means and the L2 norm is a root mean square per frame, so that neither the length of
    the crop nor the number of bands changes the scale; the log terms of all scales are weighted by alpha_s over the sum of all alpha,
    so that their weighted mean, in nepers, adds to the mean L1. Windows shorter than 512 are zero-padded to 512: a 64-sample
    spectrum has too few bins for 64 bands. Hop: a quarter of the window. num_mels: bands of each window; the paper has 64 in all.
    """
    linear, logarithmic, total = 0.0, 0.0, sum((s / 2) ** 0.5 for s in windows)
    for s, bands in zip(windows, num_mels, strict=True):
        mels = functools.partial(_mels, window=s, hop=s // 4, num_fft=max(512, s), num_mels=bands, sample_rate_hz=sample_rate_hz)
        ours, theirs = mels(wave), mels(reference)
        linear += jnp.mean(jnp.abs(ours - theirs)) / len(windows)
        difference = jnp.log(ours + floor) - jnp.log(theirs + floor)
        # The tiny constant keeps the gradient of the root finite where nothing differs.
        rms = jnp.sqrt(jnp.mean(jnp.square(difference), axis=-1) + 1e-10) - 1e-5
        logarithmic += (s / 2) ** 0.5 / total * jnp.mean(rms)
    return linear + logarithmic


def mel_distance(wave: Float[Array, "B N"], reference: Float[Array, "B N"], *, sample_rate_hz: int) -> Float[Array, ""]:
    """The mel distance by which codecs are compared, as descript-audio-codec's evaluation defines it (lower is better, 0 is equal).

    Summed over (150 bands, window 2048) and (80, 512), hop a quarter of the window, frames centred with reflected edges, periodic
    Hann, magnitudes under Slaney's filters over the whole band: mean |log10 a^2 - log10 b^2| with a, b not less than 1e-5, plus
    mean |a - b|. Needs more than 1024 samples.
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
    """Mean over discriminators and time of max(0, 1 - D(real)) + max(0, 1 + D(fake)) (SoundStream, equation 1). Inputs: logits."""
    terms = [jnp.mean(jax.nn.relu(1 - r)) + jnp.mean(jax.nn.relu(1 + f)) for r, f in zip(real, fake, strict=True)]
    return sum(terms) / len(terms)


def hinge_generator_loss(fake: Sequence[jax.Array]) -> Float[Array, ""]:
    """Mean over discriminators and time of max(0, 1 - D(fake)) (SoundStream, equation 2)."""
    return sum(jnp.mean(jax.nn.relu(1 - f)) for f in fake) / len(fake)


def feature_loss(real: Sequence[Sequence[jax.Array]], fake: Sequence[Sequence[jax.Array]]) -> Float[Array, ""]:
    """Mean over discriminators and layers of the mean |D_l(real) - D_l(fake)| (SoundStream, equation 3). The logits are left out."""
    terms = [
        jnp.mean(jnp.abs(jax.lax.stop_gradient(r) - f))
        for one_real, one_fake in zip(real, fake, strict=True)
        for r, f in zip(one_real[:-1], one_fake[:-1], strict=True)
    ]
    return sum(terms) / len(terms)


def semi_hard_triplet_loss(distances: Float[Array, "B B"], same: Bool[Array, "B B"], *, margin: float) -> Float[Array, ""]:
    """FaceNet's triplet loss (arXiv 1503.03832, section 3) with one negative per anchor, mined in the batch: mean max(0, positive - negative + margin).

    distances: squared distances of anchors (rows) to candidates (columns); the positive of each anchor is on the diagonal. same: True where
    anchor and candidate are one and the same thing, so that the candidate is no negative; it must be True on the diagonal.

    The negative is the nearest of those that are farther than the positive: within the margin that is FaceNet's semi-hard one, beyond it
    costs nothing. Where all are nearer it is the farthest, the easiest. The hardest ones would draw all embeddings to one point early on;
    there the loss is the margin. An anchor without a negative adds 0.
    """
    distances = distances.astype(jnp.float32)
    positive, negatives = jnp.diagonal(distances), jnp.logical_not(same)
    farther = negatives & (distances > positive[:, None])
    nearest = jnp.argmin(jnp.where(farther, distances, jnp.inf), axis=1)
    farthest = jnp.argmax(jnp.where(negatives, distances, -jnp.inf), axis=1)
    chosen = jnp.where(jnp.any(farther, axis=1), nearest, farthest)
    negative = jnp.take_along_axis(distances, chosen[:, None], axis=1)[:, 0]
    return jnp.mean(jnp.where(jnp.any(negatives, axis=1), jax.nn.relu(positive - negative + margin), 0.0))
