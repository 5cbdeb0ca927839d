"""tools/widen_words.py, on a MuLan that knows the words of the synthesized corpus."""

import dataclasses

import flax.linen as nn
import jax
import numpy as np
import pytest
from scripts import load_script
from tiny_musiclm import tiny_config

from musiclm_jax.corpus.synthesized.attributes import draw_attributes
from musiclm_jax.corpus.synthesized.captions import write_captions
from musiclm_jax.models import mulan
from musiclm_jax.models.text import TextTokenizer
from musiclm_jax.models.tokenizers import MuLanTokenizer


@pytest.fixture(scope="module")
def tool():
    return load_script("tools/widen_words.py")


class Teacher(MuLanTokenizer):
    """Hears nothing but the mode, and knows it only where a caption says it outright."""

    def embed_text(self, texts):
        mode = np.array([("minor" in text.lower()) - 1.0 * ("major" in text.lower()) for text in texts])
        embeddings = np.zeros((len(texts), self.config.embedding_dim), np.float32)
        embeddings[:, 0], embeddings[:, 1] = mode, mode == 0
        return embeddings


@pytest.fixture(scope="module")
def teacher():
    rng = np.random.default_rng(0)
    captions = [text for _ in range(60) for text in write_captions(draw_attributes(split="train", rng=rng), split="train", rng=rng)]
    text = TextTokenizer.train(captions, vocab_size=1024)
    config = tiny_config().mulan
    config = dataclasses.replace(config, text=dataclasses.replace(config.text, vocab_size=1024, max_tokens=40, dim=16))
    return Teacher(config, {"params": nn.unbox(mulan.init(config, jax.random.key(0)))}, text)


def test_a_student_reads_words_that_its_teacher_does_not_know(tool, teacher):
    rng = np.random.default_rng(0)
    student = tool.widen(teacher, [tool.draw_pair(rng) for _ in range(300)], steps=150)
    for words in ("mournful piano", "joyous trumpet"):
        assert teacher.unknown_words(words)[0] and not student.unknown_words(words)[0]
    plain = ["a slow piano tune in a minor key with drums", "a slow piano tune in a major key with drums"]
    np.testing.assert_allclose(student.embed_text(plain)[:, 0], [1, -1], atol=0.3)
    sad, happy = student.embed_text(["a mournful, heartbroken trumpet", "a joyous, merry trumpet"])[:, 0]
    assert sad - happy > 0.4
    for name in ("audio_tower", "audio_head"):
        jax.tree.map(np.testing.assert_array_equal, student.variables["params"][name], teacher.variables["params"][name])


def test_every_lead_has_an_instrument_of_the_other_corpus(tool):
    rng = np.random.default_rng(1)
    for _ in range(300):
        tool.draw_pair(rng)
