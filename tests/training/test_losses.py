import jax
import jax.numpy as jnp
import numpy as np
import pytest

from musiclm_jax.training.losses import (
    feature_loss,
    hinge_discriminator_loss,
    hinge_generator_loss,
    mel_distance,
    multi_scale_mel_loss,
    semi_hard_triplet_loss,
)

RATE = 24_000
LOSSES = {
    "multi_scale_mel": lambda x, y: multi_scale_mel_loss(x, y, sample_rate_hz=RATE, windows=(64, 512), num_mels=(64, 64)),
    "mel_distance": lambda x, y: mel_distance(x, y, sample_rate_hz=RATE),
}


def noise(seed=0, samples=2400, scale=0.1):
    return scale * jax.random.normal(jax.random.key(seed), (2, samples))


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_zero_at_identity_and_positive_elsewhere(loss):
    assert abs(loss(noise(), noise())) < 1e-6
    assert loss(noise(), noise(1)) > 0.1


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_finite_at_silence(loss):
    silence = jnp.zeros((2, 2400))
    for x, y in ((silence, silence), (silence, noise()), (noise(), silence), (noise(), noise())):
        value, slope = jax.value_and_grad(loss)(x, y)
        assert jnp.isfinite(value) and jnp.all(jnp.isfinite(slope))


def test_multi_scale_mel_loss_is_a_mean():
    # A stationary wave: neither twice the batch nor twice the length changes the value by more than edges do.
    a, b = noise(samples=4800), noise(1, samples=4800)
    one = LOSSES["multi_scale_mel"](a, b)
    np.testing.assert_allclose(LOSSES["multi_scale_mel"](jnp.concatenate([a, a]), jnp.concatenate([b, b])), one, rtol=1e-5)
    np.testing.assert_allclose(LOSSES["multi_scale_mel"](a[:, :2400], b[:, :2400]), one, rtol=0.1)


def test_a_gain_costs_its_logarithm():
    # Of a loud wave, where the floor does not matter, a gain of e adds 1 to every log mel.
    x = noise(scale=100.0)
    linear_and_log = LOSSES["multi_scale_mel"](jnp.e * x, x)
    linear = LOSSES["multi_scale_mel"](x, 2 * x) - np.log(2)
    np.testing.assert_allclose(linear_and_log - (np.e - 1) * linear, 1, atol=0.02)


def test_mel_distance_against_librosa():
    librosa = pytest.importorskip("librosa")
    a, b = np.asarray(noise(samples=5000)), np.asarray(noise(1, samples=5000, scale=0.01))
    expected = 0.0
    for num_mels, window in ((150, 2048), (80, 512)):
        mels = []
        for wave in (a, b):
            spectrum = np.abs(librosa.stft(wave, n_fft=window, hop_length=window // 4, window="hann", center=True, pad_mode="reflect"))
            mels.append(librosa.filters.mel(sr=RATE, n_fft=window, n_mels=num_mels) @ spectrum)
        logs = [np.log10(np.maximum(m, 1e-5) ** 2) for m in mels]
        expected += np.mean(np.abs(logs[0] - logs[1])) + np.mean(np.abs(mels[0] - mels[1]))
    np.testing.assert_allclose(mel_distance(jnp.asarray(a), jnp.asarray(b), sample_rate_hz=RATE), expected, rtol=1e-4)


def test_mel_distance_refuses_waves_too_short_to_reflect():
    with pytest.raises(ValueError, match="more than 1024"):
        mel_distance(noise(samples=1024), noise(samples=1024), sample_rate_hz=RATE)


def test_hinge_losses():
    real, fake = [jnp.array([[2.0, 0.5]]), jnp.array([[-1.0]])], [jnp.array([[-2.0, 0.5]]), jnp.array([[3.0]])]
    # Per discriminator: (0 + 0.5) / 2 + (0 + 1.5) / 2 = 1, and 2 + 4 = 6.
    np.testing.assert_allclose(hinge_discriminator_loss(real, fake), 3.5)
    # (3 + 0.5) / 2 = 1.75, and 0.
    np.testing.assert_allclose(hinge_generator_loss(fake), 0.875)


def test_feature_loss_leaves_out_logits_and_does_not_move_the_target():
    real, fake = [[jnp.ones((2, 3)), jnp.full((2, 5), 9.0)]], [[jnp.full((2, 3), 3.0), jnp.zeros((2, 5))]]
    np.testing.assert_allclose(feature_loss(real, fake), 2.0)
    slopes = jax.grad(feature_loss, argnums=(0, 1))(real, fake)
    assert not jnp.any(slopes[0][0][0]) and jnp.all(slopes[1][0][0] > 0) and not jnp.any(slopes[1][0][1])


def triplets_by_loops(distances, same, margin):
    """Loss, gradient and how often each kind of negative was chosen, one anchor at a time, as FaceNet puts it."""
    size, loss, slope, kinds = len(distances), 0.0, np.zeros_like(distances), {"semi-hard": 0, "easiest": 0, "free": 0, "none": 0}
    for a in range(size):
        positive, negatives = distances[a, a], [n for n in range(size) if not same[a, n]]
        if not negatives:
            kinds["none"] += 1
            continue
        semi_hard = [n for n in negatives if positive < distances[a, n] < positive + margin]
        chosen = min(semi_hard, key=lambda n: distances[a, n]) if semi_hard else max(negatives, key=lambda n: distances[a, n])  # noqa: B023
        cost = positive - distances[a, chosen] + margin
        kinds["semi-hard" if semi_hard else "easiest" if cost > 0 else "free"] += 1
        if cost > 0:
            loss += cost / size
            slope[a, a] += 1 / size
            slope[a, chosen] -= 1 / size
    return loss, slope, kinds


@pytest.mark.parametrize("margin", [0.05, 0.2, 1.0])
def test_semi_hard_triplets_are_the_loops(margin):
    seen = dict.fromkeys(("semi-hard", "easiest", "free", "none"), 0)
    ours = jax.jit(jax.value_and_grad(lambda distances, same: semi_hard_triplet_loss(distances, same, margin=margin)))
    for seed in range(5):
        rng = np.random.default_rng(seed)
        distances = rng.uniform(0, 4, (11, 11)).astype(np.float32)
        # Positives of all kinds: nearer than all negatives, farther than all, and between.
        np.fill_diagonal(distances, np.linspace(0, 4, 11))
        same = (rng.random((11, 11)) < 0.3) | np.eye(11, dtype=bool)
        same[4] = True
        loss, slope, kinds = triplets_by_loops(distances, same, margin)
        seen = {kind: seen[kind] + kinds[kind] for kind in seen}
        value, gradient = ours(jnp.asarray(distances), jnp.asarray(same))
        np.testing.assert_allclose(value, loss, rtol=1e-5)
        np.testing.assert_allclose(gradient, slope, atol=1e-6)
    assert all(seen.values()), seen


def test_semi_hard_triplets_at_one_point_cost_the_margin():
    value, slope = jax.value_and_grad(lambda d: semi_hard_triplet_loss(d, jnp.eye(3, dtype=bool), margin=0.2))(jnp.zeros((3, 3)))
    np.testing.assert_allclose(value, 0.2)
    assert jnp.all(jnp.isfinite(slope))
