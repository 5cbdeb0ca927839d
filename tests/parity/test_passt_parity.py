"""PaSST, by its definition, as transformers' AST with the sums of its positions, and as its authors' package where that is installed."""

import jax.numpy as jnp
import numpy as np
import pytest

from musiclm_jax.errors import UserError
from musiclm_jax.evaluation.judges import Classifier, load_classifier
from musiclm_jax.models import passt

torch = pytest.importorskip("torch")
reference_ast = pytest.importorskip("transformers.models.audio_spectrogram_transformer.modeling_audio_spectrogram_transformer")

pytestmark = pytest.mark.parity

# 12 rows and 9 columns of patches, one each 10 bins and 10 frames: a second.
ROWS, COLUMNS, DIM, LAYERS, HEADS, MLP, CLASSES = 12, 9, 128, 2, 2, 29, 5


def noise(seconds, rate=32_000):
    return (np.random.default_rng(0).standard_normal(round(seconds * rate)) / 5).astype(np.float32)


@pytest.fixture(scope="module")
def state():
    """A state dict with the names of the published files."""
    rng = np.random.default_rng(1)

    def draw(*shape):
        fan_in = np.prod(shape[1:]) if len(shape) > 1 else 9
        return torch.tensor(rng.standard_normal(shape) / np.sqrt(fan_in), dtype=torch.float32)

    def dense(name, out, size):
        return {f"{name}.weight": draw(out, size), f"{name}.bias": draw(out)}

    def norm(name):
        return {f"{name}.weight": 1 + draw(DIM), f"{name}.bias": draw(DIM)}

    found = {"cls_token": draw(1, 1, DIM), "dist_token": draw(1, 1, DIM), "new_pos_embed": draw(1, 2, DIM)}
    found |= {"freq_new_pos_embed": 9 * draw(1, DIM, ROWS, 1), "time_new_pos_embed": 9 * draw(1, DIM, 1, COLUMNS)}
    found |= {"patch_embed.proj.weight": draw(DIM, 1, 16, 16), "patch_embed.proj.bias": draw(DIM)}
    for i in range(LAYERS):
        found |= norm(f"blocks.{i}.norm1") | dense(f"blocks.{i}.attn.qkv", 3 * DIM, DIM) | dense(f"blocks.{i}.attn.proj", DIM, DIM)
        found |= norm(f"blocks.{i}.norm2") | dense(f"blocks.{i}.mlp.fc1", MLP, DIM) | dense(f"blocks.{i}.mlp.fc2", DIM, MLP)
    return found | norm("norm") | norm("head.0") | dense("head.1", CLASSES, DIM) | dense("head_dist", CLASSES, DIM)


@pytest.fixture(scope="module")
def judge(state, tmp_path_factory):
    path = tmp_path_factory.mktemp("passt") / "tiny.pt"
    torch.save(state, path)
    return load_classifier("passt", weights=str(path))


def as_ast(state):
    """The state dict of transformers' ASTForAudioClassification that is the same network."""
    positions = (state["freq_new_pos_embed"] + state["time_new_pos_embed"]).flatten(2).transpose(1, 2)
    start = "audio_spectrogram_transformer"
    found = {
        f"{start}.embeddings.cls_token": state["cls_token"],
        f"{start}.embeddings.distillation_token": state["dist_token"],
        f"{start}.embeddings.position_embeddings": torch.cat([state["new_pos_embed"], positions], dim=1),
    }
    names = {"patch_embed.proj": f"{start}.embeddings.patch_embeddings.projection", "norm": f"{start}.layernorm"}
    names |= {"head.0": "classifier.layernorm", "head.1": "classifier.dense"}
    parts = {"norm1": "layernorm_before", "norm2": "layernorm_after", "attn.proj": "attention.o_proj", "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}
    for i in range(LAYERS):
        names |= {f"blocks.{i}.{ours}": f"{start}.layers.{i}.{theirs}" for ours, theirs in parts.items()}
        for kind in ("weight", "bias"):
            for letter, values in zip("qkv", state[f"blocks.{i}.attn.qkv.{kind}"].chunk(3)):
                found[f"{start}.layers.{i}.attention.{letter}_proj.{kind}"] = values
    return found | {f"{theirs}.{kind}": state[f"{ours}.{kind}"] for ours, theirs in names.items() for kind in ("weight", "bias")}


def test_it_is_an_ast_with_two_tables_of_positions(state, judge):
    assert isinstance(judge, Classifier) and judge.name == "passt@tiny.pt" and len(judge.labels) == CLASSES and judge.config.window_samples == 32_000
    sizes = {"hidden_size": DIM, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "intermediate_size": MLP, "num_labels": CLASSES}
    config = reference_ast.ASTConfig(max_length=COLUMNS * 10 + 15, num_mel_bins=128, layer_norm_eps=1e-6, **sizes)
    model = reference_ast.ASTForAudioClassification(config).eval()
    # Epsilons are 1e-6 in its norms and 1e-5 in its head.
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = 1e-5 if name.startswith("classifier") else 1e-6
    model.load_state_dict(as_ast(state))
    wave = noise(2.3)
    mel = np.array(passt.log_mel(jnp.asarray(wave[:64_000].reshape(2, -1))))
    assert mel.shape == (2, 100, 128)
    with torch.inference_mode():
        theirs = model(input_values=torch.from_numpy(mel)).logits.numpy()
    assert np.std(theirs) > 0.1
    np.testing.assert_allclose(judge.logits(wave), theirs, atol=2e-5)


def test_its_spectrogram():
    """By its definition, frame by frame in float64: windows of 25 ms in frames of 1,024 samples, each 10 ms, centred, and triangles over HTK's mel scale."""
    wave = noise(1.0)
    mel = lambda hz: 1127 * np.log(1 + np.asarray(hz) / 700)  # noqa: E731
    edges = np.linspace(mel(0), mel(15_000), 130)
    filters = np.array([[np.interp(mel(31.25 * f), edges[m : m + 3], [0, 1, 0]) for m in range(128)] for f in range(513)])
    emphasized = np.pad(wave[1:].astype(np.float64) - 0.97 * wave[:-1], 512, mode="reflect")
    window = np.pad(np.hanning(800), 112)
    power = np.stack([np.abs(np.fft.rfft(window * emphasized[320 * t : 320 * t + 1024])) ** 2 for t in range(100)])
    expected = (np.log(power @ filters + 1e-5) + 4.5) / 5
    np.testing.assert_allclose(passt.log_mel(jnp.asarray(wave[None]))[0], expected, atol=1e-4)


def test_its_authors_package(state, judge):
    network = pytest.importorskip("hear21passt.models.passt", exc_type=ImportError)
    front = pytest.importorskip("hear21passt.models.preprocess", exc_type=ImportError)
    sizes = {"img_size": (128, 98), "stride": 10, "num_classes": CLASSES, "embed_dim": DIM, "depth": LAYERS, "num_heads": HEADS, "mlp_ratio": MLP / DIM}
    model = network.PaSST(**sizes, distilled=True).eval()
    model.load_state_dict(state)
    mel = front.AugmentMelSTFT(n_mels=128, sr=32_000, win_length=800, hopsize=320, n_fft=1024, fmin_aug_range=10, fmax_aug_range=2000).eval()
    wave = noise(1.0)
    with torch.inference_mode():
        theirs = model(mel(torch.from_numpy(wave)[None])[:, None])[0].numpy()
    np.testing.assert_allclose(judge.logits(wave), theirs, atol=1e-4)


def test_the_published_sizes():
    shapes = passt.variable_shapes(passt.PasstConfig())
    assert shapes["ast"]["positions"].shape == (12, 99, 768) and shapes["head"]["kernel"].shape == (768, 527)
    assert passt.PasstConfig().window_samples == 320_000


def test_other_weights(state, tmp_path):
    torch.save({"a": torch.ones(3)}, tmp_path / "other.pt")
    with pytest.raises(UserError, match="other.pt: not the weights of PaSST .* choose a file such as passt-s-f128"):
        load_classifier("passt", weights=str(tmp_path / "other.pt"))
    torch.save({**state, "norm.bias": torch.ones(3)}, tmp_path / "odd.pt")
    with pytest.raises(UserError, match="odd.pt: has 'ast.final_norm.bias'"):
        load_classifier("passt", weights=str(tmp_path / "odd.pt"))
    with pytest.raises(UserError, match="passt: name its weights with --weights, such as passt-s-f128"):
        load_classifier("passt")
