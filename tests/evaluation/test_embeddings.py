"""The embeddings of a bundle, and the names of all judges."""

import jax.numpy as jnp
import numpy as np
import pytest
from tiny_musiclm import tiny_musiclm

from musiclm_jax.errors import UserError
from musiclm_jax.evaluation import outside
from musiclm_jax.evaluation.embeddings import Embedding, batched, pieces, windows
from musiclm_jax.evaluation.judges import CLASSIFIERS, EMBEDDINGS, MATCHERS, Classifier, Matcher, load_classifier, load_embedding, load_matcher
from musiclm_jax.models import codec


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    path = tmp_path_factory.mktemp("bundle") / "tiny"
    tiny_musiclm().save_pretrained(path)
    return str(path)


def wave(seconds, rate=24_000):
    return np.random.default_rng(0).standard_normal(round(seconds * rate)).astype(np.float32) / 4


def test_windows_and_pieces():
    x = np.arange(10, dtype=np.float32)
    np.testing.assert_array_equal(windows(x, window=4, hop=3), [[0, 1, 2, 3], [3, 4, 5, 6], [6, 7, 8, 9]])
    assert windows(x, window=11, hop=3).shape == (1, 10)
    assert [len(piece) for piece in pieces(np.zeros(237, np.float32), 10)] == [100, 100, 30]
    assert [len(piece) for piece in pieces(np.zeros(19, np.float32), 10)] == [10]
    sizes = []
    rows = batched(lambda batch: sizes.append(len(batch)) or np.asarray(batch)[:, None] + 1, list(range(11)), size=4)
    assert sizes == [4, 4, 3] and rows[:, 0].tolist() == list(range(1, 12))


def test_the_codecs_latents(bundle):
    judge, model = load_embedding("codec", model=bundle), tiny_musiclm()
    assert isinstance(judge, Embedding) and judge.name.startswith("codec@") and judge.sample_rate_hz == judge.min_samples == 24_000
    x = wave(2.9)
    latents = codec.module(model.config.codec).apply({"params": model.variables("codec")["params"]}, jnp.asarray(x[None, :48_000]), method="encode")
    np.testing.assert_allclose(judge.embed(x), latents[0], rtol=1e-6, atol=1e-6)


def test_mulans_windows(bundle):
    judge, model = load_embedding("mulan", model=bundle), tiny_musiclm()
    x = wave(1.0)
    rows = judge.embed(x)  # Windows of 0.5 s, one each 0.1 s.
    assert rows.shape == (6, 6)
    np.testing.assert_allclose(rows[2], model.mulan.embed_audio(x[None, 4800:16_800])[0], atol=1e-6)
    assert isinstance(load_matcher("mulan", model=bundle), Matcher)
    np.testing.assert_allclose(judge.embed_clip(x), model.mulan.embed_audio(x[None])[0], atol=1e-6)
    texts = [f"a piano {word}" for word in "a b c d e f g h i j".split()]
    np.testing.assert_allclose(judge.embed_texts(texts), model.mulan.embed_text(texts), atol=1e-6)


def test_layers_of_w2v_bert(bundle):
    judge = load_embedding("w2v-bert", model=bundle)
    assert judge.embed(wave(1.5)).shape == (25, 4)
    chosen = load_embedding("w2v-bert:1", model=bundle)
    np.testing.assert_array_equal(chosen.embed(wave(1.0)), judge.embed(wave(1.0)))
    assert chosen.name == f"{judge.name}:1"
    with pytest.raises(UserError, match="w2v-bert:2: choose a layer from 1 to 1"):
        load_embedding("w2v-bert:2", model=bundle)


def test_names():
    judge = load_embedding("musicnn")
    assert isinstance(judge, Embedding) and isinstance(load_classifier("musicnn"), Classifier) and len(judge.labels) == 50
    for load, known in ((load_embedding, EMBEDDINGS), (load_classifier, CLASSIFIERS), (load_matcher, MATCHERS)):
        with pytest.raises(UserError, match=f"'other': choose one of {', '.join(known)}"):
            load("other")
    for name, message in [
        ("musicnn:3", "choose 'musicnn' alone"),
        ("mert:", "choose 'mert' alone, or with the number of a layer, such as 'mert:3'"),
        ("w2v-bert:x", "such as 'w2v-bert:3'"),
        ("w2v-bert:²", "such as 'w2v-bert:3'"),
        ("trill:layer3", "choose 'trill' alone, or with one of its outputs, 'trill:layer19'"),
        ("saved-model:a@0", "an output and a rate, such as 'saved-model:logits', 'saved-model:@32000' or 'saved-model:logits@32000'"),
    ]:
        with pytest.raises(UserError, match=message):
            load_embedding(name)
    with pytest.raises(UserError, match="mulan has no --weights of its own: leave them out, or choose one of vggish, clap, encodec, mert, trill, saved-model"):
        load_embedding("mulan", weights="x")


def test_what_a_judge_from_outside_lacks_is_named(monkeypatch, tmp_path):
    with pytest.raises(UserError, match="vggish: name its weights with --weights"):
        load_embedding("vggish")
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    for load in (outside.load_clap, outside.load_encodec, outside.load_mert, outside.load_ast):
        with pytest.raises(UserError, match=r"needs the package transformers; install it with: pip install 'musiclm-jax\[judges\]'"):
            load(str(tmp_path))
    monkeypatch.setitem(__import__("sys").modules, "tensorflow", None)
    with pytest.raises(UserError, match=r"needs the package tensorflow; install it with: pip install 'musiclm-jax\[savedmodel\]'"):
        load_embedding("trill", weights=str(tmp_path))
