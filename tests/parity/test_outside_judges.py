"""Judges from outside, on random weights of small sizes that are written as their authors publish theirs."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from musiclm_jax.errors import UserError
from musiclm_jax.evaluation.embeddings import Embedding
from musiclm_jax.evaluation.judges import Classifier, Matcher, load_classifier, load_embedding, load_matcher
from musiclm_jax.models import vggish

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.parity


def noise(seconds, rate):
    return (np.random.default_rng(0).standard_normal(round(seconds * rate)) / 5).astype(np.float32)


def close(ours, theirs, atol=1e-5):
    theirs = theirs.detach().numpy()
    assert np.std(theirs) > 1e-3  # Otherwise the tolerance would mean nothing.
    np.testing.assert_allclose(ours, theirs, atol=atol, rtol=1e-4)


@pytest.fixture(scope="module")
def encodec(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("encodec")
    model = transformers.EncodecModel(transformers.EncodecConfig(num_filters=4, hidden_size=8, codebook_dim=8, num_lstm_layers=1)).eval()
    model.save_pretrained(path)
    return model, path


def test_encodec(encodec, tmp_path):
    model, path = encodec
    judge = load_embedding("encodec", weights=str(path))
    assert isinstance(judge, Embedding) and judge.sample_rate_hz == 24_000 and judge.name == f"encodec@{path}"
    wave = noise(1.3, 24_000)
    rows = judge.embed(wave)
    assert rows.shape == (98, 8)  # 75 a second.
    close(rows, model.encoder(torch.from_numpy(wave)[None, None])[0].T)
    transformers.EncodecModel(transformers.EncodecConfig(num_filters=4, hidden_size=8, codebook_dim=8, audio_channels=2)).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="has 2 channels, expected 1: choose the EnCodec at 24 kHz"):
        load_embedding("encodec", weights=str(tmp_path))


HUBERT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24, "conv_dim": [8] * 7}
HUBERT |= {"num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2}
MERT = {"model_type": "mert_model", "feature_extractor_cqt": False, "deepnorm": False, "attention_relax": -1.0, "sample_rate": 24_000}


@pytest.fixture(scope="module")
def mert(tmp_path_factory):
    """As MERT-v1 is published: a config of its own type, and a pickle with the names of weight norm of before PyTorch 2."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("mert")
    model = transformers.HubertModel(transformers.HubertConfig(**HUBERT)).eval()
    state = {
        name.replace("parametrizations.weight.original0", "weight_g").replace("parametrizations.weight.original1", "weight_v"): value
        for name, value in model.state_dict().items()
    }
    torch.save(state, path / "pytorch_model.bin")
    (path / "config.json").write_text(json.dumps({**model.config.to_dict(), **MERT}))
    return model, path


def test_mert_is_a_hubert(mert, tmp_path):
    model, path = mert
    judge = load_embedding("mert:1", weights=str(path))
    wave = noise(1.2, 24_000)
    whole = wave[:24_000]
    inputs = transformers.Wav2Vec2FeatureExtractor(sampling_rate=24_000, do_normalize=True)(whole, sampling_rate=24_000, return_tensors="pt")
    close(judge.embed(wave), model(**inputs, output_hidden_states=True).hidden_states[1][0])
    assert load_embedding("mert", weights=str(path)).layer == 2 and judge.name == f"mert@{path}:1"
    with pytest.raises(UserError, match="mert:3: choose a layer from 0 to 2"):
        load_embedding("mert:3", weights=str(path))
    (tmp_path / "config.json").write_text(json.dumps({**model.config.to_dict(), **MERT, "feature_extractor_cqt": True}))
    with pytest.raises(UserError, match="feature_extractor_cqt=True, expected False: choose a MERT that is a HuBERT"):
        load_embedding("mert", weights=str(tmp_path))


def test_missing_weights_are_an_error(mert, tmp_path):
    model, path = mert
    state = model.state_dict()
    state.pop("encoder.layer_norm.weight")
    torch.save(state, tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text((path / "config.json").read_text())
    with pytest.raises(UserError, match=r"lacks 1 of the weights of HubertModel, such as encoder.layer_norm.weight"):
        load_embedding("mert", weights=str(tmp_path))
    with pytest.raises(UserError, match=r"nothing: cannot be loaded as EncodecModel .*; download it, and name its folder with --weights"):
        load_embedding("encodec", weights=str(tmp_path / "nothing"))


@pytest.fixture(scope="module")
def clap(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("clap")
    text = {"vocab_size": 99, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "projection_dim": 12}
    audio = {"depths": [1, 1], "num_attention_heads": [1, 2], "patch_embeds_hidden_size": 8, "hidden_size": 16, "num_hidden_layers": 2, "projection_dim": 12}
    model = transformers.ClapModel(transformers.ClapConfig(text_config=text, audio_config=audio, projection_dim=12)).eval()
    model.save_pretrained(path)
    transformers.ClapFeatureExtractor(truncation="rand_trunc", padding="repeatpad").save_pretrained(path)
    words = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *"abcdefghijklmnopqrstuvwxyz", "Ġ"]
    transformers.RobertaTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[]).save_pretrained(path)
    return model, path


def test_clap(clap):
    model, path = clap
    judge = load_matcher("clap", weights=str(path))
    assert isinstance(judge, Matcher) and isinstance(judge, Embedding)
    wave = noise(12.5, 48_000)
    features = transformers.ClapFeatureExtractor.from_pretrained(path)
    windows = [wave[start * 48_000 : (start + 10) * 48_000] for start in range(3)]
    theirs = torch.cat([model.get_audio_features(**features(each, sampling_rate=48_000, return_tensors="pt")).pooler_output for each in windows])
    close(judge.embed(wave), theirs)
    unit = torch.nn.functional.normalize(theirs, dim=-1).mean(dim=0)
    close(judge.embed_clip(wave), torch.nn.functional.normalize(unit, dim=-1))
    texts = ["a calm piano", "drums"]
    tokens = transformers.AutoTokenizer.from_pretrained(path)(texts, padding=True, return_tensors="pt")
    close(judge.embed_texts(texts), torch.nn.functional.normalize(model.get_text_features(**tokens).pooler_output, dim=-1))


def test_ast(tmp_path):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "max_length": 1024}
    names = {0: "Music", 1: "Speech", 2: "Rain"}
    model = transformers.ASTForAudioClassification(transformers.ASTConfig(**sizes, id2label=names, label2id={name: i for i, name in names.items()})).eval()
    model.save_pretrained(tmp_path)
    features = transformers.ASTFeatureExtractor()
    features.save_pretrained(tmp_path)
    judge = load_classifier("ast", weights=str(tmp_path))
    assert isinstance(judge, Classifier) and judge.labels == ("Music", "Speech", "Rain") and judge.sample_rate_hz == 16_000
    wave = noise(3, 16_000)
    close(judge.logits(wave), model(**features(wave, sampling_rate=16_000, return_tensors="pt")).logits)


WIDTHS, HIDDEN, DIM = (3, 5, 7, 7, 11, 11), 13, 6


def torch_vggish():
    """torchvggish's network, as its description says: the names of its state dict are those of the published file."""
    layers, channels = [], 1
    for i, width in enumerate(WIDTHS):
        layers += [torch.nn.Conv2d(channels, width, 3, padding=1), torch.nn.ReLU()]
        layers += [torch.nn.MaxPool2d(2, 2)] if i in (0, 1, 3, 5) else []
        channels = width
    units = (WIDTHS[-1] * 4 * 6, HIDDEN, HIDDEN, DIM)
    dense = [layer for a, b in zip(units, units[1:]) for layer in (torch.nn.Linear(a, b), torch.nn.ReLU())]
    return torch.nn.ModuleDict({"features": torch.nn.Sequential(*layers), "embeddings": torch.nn.Sequential(*dense)}).eval()


def test_vggish(tmp_path):
    torch.manual_seed(0)
    network = torch_vggish()
    torch.save(network.state_dict(), tmp_path / "vggish.pth")
    judge = load_embedding("vggish", weights=str(tmp_path / "vggish.pth"))
    assert isinstance(judge, Embedding) and judge.config == vggish.VggishConfig(WIDTHS, HIDDEN, DIM)
    wave = noise(2.1, 16_000)
    patches = vggish.patches(wave)
    assert len(patches) == 2
    mel = torch.from_numpy(np.array(vggish.log_mel(jnp.asarray(patches))))
    x = network["features"](mel[:, None]).permute(0, 2, 3, 1).flatten(1)
    close(judge.embed(wave), network["embeddings"][:-1](x), atol=1e-5)
    for name, data in (("bad.pth", b"no weights"), ("other.pth", None)):
        (tmp_path / name).write_bytes(data) if data else torch.save({"a": torch.ones(3)}, tmp_path / name)
        with pytest.raises(UserError, match=f"{name}: not (a file of PyTorch's weights|the weights of torchvggish)"):
            load_embedding("vggish", weights=str(tmp_path / name))


def test_vggishs_spectrogram():
    """Its log-mel by its definition, frame by frame in float64: frames of 25 ms each 10 ms, and triangles over HTK's mel scale."""
    wave = noise(1.0, 16_000)
    mel = lambda hz: 1127 * np.log(1 + np.asarray(hz) / 700)  # noqa: E731
    edges = np.linspace(mel(125), mel(7500), 66)
    filters = np.array([[np.interp(mel(31.25 * f), edges[m : m + 3], [0, 1, 0]) for m in range(64)] for f in range(257)])
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
    frames = np.stack([wave[160 * t : 160 * t + 400] * hann for t in range(96)])
    expected = np.log(np.abs(np.fft.rfft(frames, 512)) @ filters + 0.01)
    np.testing.assert_allclose(vggish.log_mel(jnp.asarray(vggish.patches(wave)))[0], expected, atol=1e-4)
