"""SavedModels of TensorFlow as judges: what TRILL's module looks like, and other functions of a wave."""

import numpy as np
import pytest

from musiclm_jax.errors import UserError
from musiclm_jax.evaluation.embeddings import Embedding
from musiclm_jax.evaluation.judges import Classifier, load_classifier, load_embedding

tf = pytest.importorskip("tensorflow")

pytestmark = pytest.mark.parity
WAVE = np.random.default_rng(0).standard_normal(41_000).astype(np.float32)


def frames(wave):
    return np.asarray(wave).reshape(-1, 100)


@pytest.fixture(scope="module")
def trill(tmp_path_factory):
    """A module that is called as TRILL is, without a signature for serving: samples and their rate -> two outputs over time."""

    class Module(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, name="samples"), tf.TensorSpec([], tf.int32, name="sample_rate")])
        def __call__(self, samples, sample_rate):
            rows = tf.reshape(samples, [-1, 100])
            return {"embedding": rows[:, :3] * tf.cast(sample_rate, tf.float32), "layer19": rows[:, :7]}

    path, module = str(tmp_path_factory.mktemp("trill") / "3"), Module()
    tf.saved_model.save(module, path, signatures={})
    return path


def test_trill(trill):
    judge = load_embedding("trill", weights=trill)
    assert isinstance(judge, Embedding) and judge.sample_rate_hz == judge.min_samples == 16_000 and judge.name == "trill@3:embedding"
    # Whole seconds are read, in pieces of at most 10 s.
    np.testing.assert_allclose(judge.embed(WAVE), 16_000 * frames(WAVE[:32_000])[:, :3], rtol=1e-6)
    np.testing.assert_array_equal(load_embedding("trill:layer19", weights=trill).embed(WAVE), frames(WAVE[:32_000])[:, :7])


def test_a_classifier_of_clips_of_one_length(tmp_path):
    """As exported by Keras: batches in, logits out, by a signature for serving; and a length of its own."""

    class Module(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None, 8000], tf.float32)])
        def serve(self, waves):
            return {"logits": waves[:, :5] - 1}

    module = Module()
    tf.saved_model.save(module, str(tmp_path), signatures=module.serve)
    judge = load_classifier("leaf", weights=str(tmp_path))
    assert isinstance(judge, Classifier) and len(judge.labels) == 5 and judge.min_samples == 8000
    np.testing.assert_array_equal(judge.logits(WAVE), WAVE[:40_000].reshape(5, 8000)[:, :5] - 1)
    other = load_classifier("saved-model:logits@24000", weights=str(tmp_path))
    assert other.sample_rate_hz == 24_000 and other.output == "logits"


def test_outputs_without_names(tmp_path):
    class Module(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None], tf.float32)])
        def __call__(self, wave):
            return wave[None, None, :4], tf.zeros([])

    tf.saved_model.save(Module(), str(tmp_path), signatures={})
    assert load_embedding("saved-model:output_0", weights=str(tmp_path)).embed(WAVE).shape == (1, 4)
    with pytest.raises(UserError, match="has several outputs; choose one: saved-model:output_0, saved-model:output_1"):
        load_embedding("saved-model", weights=str(tmp_path))
    with pytest.raises(UserError, match=r"its output 'output_1' has the shape \(\), expected vectors over time"):
        load_embedding("saved-model:output_1", weights=str(tmp_path))


def test_mistakes(trill, tmp_path):
    with pytest.raises(UserError, match="trill: name the folder of its SavedModel with --weights, google/nonsemantic-speech-benchmark/trill/3"):
        load_embedding("trill")
    with pytest.raises(UserError, match="has no output 'x'; choose one: saved-model:embedding, saved-model:layer19"):
        load_embedding("saved-model:x", weights=trill)
    with pytest.raises(UserError, match=r"cannot be loaded as a SavedModel .*; name the folder of a saved_model.pb"):
        load_embedding("trill", weights=str(tmp_path))
    (tmp_path / "saved_model.pb").write_bytes(b"no model")
    with pytest.raises(UserError, match="cannot be loaded as a SavedModel"):
        load_embedding("trill", weights=str(tmp_path))


def test_other_functions(tmp_path):
    class Text(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None], tf.string)])
        def __call__(self, x):
            return tf.strings.length(x)

    class Picky(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None], tf.float32)])
        def __call__(self, x):
            return tf.reshape(x, [-1, 7])

    for name, module in (("text", Text()), ("picky", Picky())):
        tf.saved_model.save(module, str(tmp_path / name))
    with pytest.raises(UserError, match="text: has no function of one wave"):
        load_embedding("saved-model", weights=str(tmp_path / "text"))
    with pytest.raises(UserError, match="picky: fails on 16000 samples"):
        load_embedding("saved-model", weights=str(tmp_path / "picky"))
