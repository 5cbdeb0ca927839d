"""Mixtures, exclusions, fades and music without a prompt: what the text tower reads, what the stages are given, and what guidance pushes away from."""

import dataclasses

import numpy as np
import pytest
from tiny_musiclm import tiny_config, tiny_musiclm

from musiclm_jax.errors import UserError
from musiclm_jax.generation.sampler import SamplingConfig
from musiclm_jax.generation.tracks import StageTrack
from musiclm_jax.generation.wishes import Wish, embed_wishes, excluded_tokens, make_script, mix, parse_wish, wish_tokens
from musiclm_jax.models.mulan import MuLanConfig
from musiclm_jax.models.text import TextTokenizer
from musiclm_jax.models.tokenizers import MuLanTokenizer
from musiclm_jax.musiclm import MusicLM
from musiclm_jax.tokens import ABSENT

DIRECTIONS = {"calm piano": (1, 0, 0), "techno": (0, 1, 0), "drums": (0, 0, 1), "calm piano, no drums": (0.6, 0.8, 0)}


class Tower(MuLanTokenizer):
    """A text tower that knows DIRECTIONS, and the words of `known`; its tokens are embeddings in hundredths."""

    def __init__(self, known: tuple[str, ...] = ("no", "drums")):
        super().__init__(MuLanConfig(num_levels=3), {}, TextTokenizer.train(DIRECTIONS, vocab_size=100))
        object.__setattr__(self, "known", known)

    def embed_text(self, texts):
        return np.array([DIRECTIONS[text] for text in texts], np.float32)

    def unknown_words(self, text):
        return [word for word in text.split() if word not in self.known], []

    def quantize_text(self, embeddings):
        return np.round(100 * embeddings).astype(np.int32)


def test_a_mixture_has_shares():
    assert parse_wish("0.7: calm piano | 0.3: techno").parts == ((0.7, "calm piano"), (0.3, "techno"))
    assert parse_wish("calm piano|techno").parts == ((0.5, "calm piano"), (0.5, "techno"))
    assert parse_wish("0,5: a | 1,5: b").parts == ((0.25, "a"), (0.75, "b"))
    assert parse_wish("3:a | 1:b").parts == ((0.75, "a"), (0.25, "b"))
    assert parse_wish("at 4:30 in the morning").parts == ((1.0, "at 4:30 in the morning"),)
    for text in ("0.5: a |", "0.5: a | b", "0: a | 0: b", "|", "-1: a | 2: b"):
        with pytest.raises(UserError, match="the mixture"):
            parse_wish(text)


def test_the_embedding_of_a_mixture_lies_between():
    tower = Tower()
    one, both = embed_wishes(tower, [parse_wish("calm piano"), parse_wish("3: calm piano | 1: techno")])
    np.testing.assert_array_equal(one, DIRECTIONS["calm piano"])
    np.testing.assert_allclose(both, np.array([3, 1, 0]) / np.sqrt(10), rtol=1e-6)
    np.testing.assert_array_equal(wish_tokens(tower, [parse_wish("3: calm piano | 1: techno")]), [[95, 32, 0]])


@pytest.mark.parametrize("text, found", [("a piano without any drums", ("drums",)), ("loud, No drums and no bass", ("drums", "bass")), ("nowhere", ())])
def test_a_prompt_says_what_it_excludes(text, found):
    assert parse_wish(text).without == found
    assert parse_wish(text, without=["drums"]).without == tuple(dict.fromkeys(("drums", *found)))


def test_what_is_excluded_is_named_pushed_away_and_counted_against():
    tower, wish = Tower(), parse_wish("calm piano", without=["drums"])
    np.testing.assert_array_equal(wish_tokens(tower, [wish]), [[60, 80, 0]])
    np.testing.assert_array_equal(excluded_tokens(tower, [wish, parse_wish("techno")]), [[0, 0, 100], [ABSENT] * 3])
    np.testing.assert_allclose(embed_wishes(tower, [wish])[0], np.array([0.6, 0.8, -0.5]) / np.sqrt(1.25), rtol=1e-6)
    # A tower without these words is not given them.
    np.testing.assert_array_equal(wish_tokens(Tower(known=()), [wish]), [[100, 0, 0]])


def test_a_fade_goes_over_in_steps():
    story = [(0, "calm piano"), (10, "techno")]
    assert [(time, wishes[0].parts) for time, wishes in make_script([], story)] == [(0, ((1.0, "calm piano"),)), (10, ((1.0, "techno"),))]
    script = make_script([], story, fade=3, num_samples=2)
    assert [time for time, _ in script] == [0, 8.5, 9.5, 10.5, 11.5] and all(len(wishes) == 2 for _, wishes in script)
    assert [dict((text, share) for share, text in wishes[0].parts).get("techno", 0) for _, wishes in script] == [0, 0.25, 0.5, 0.75, 1]
    assert mix(parse_wish("a"), parse_wish("b"), 0.25).parts == ((0.75, "a"), (0.25, "b"))
    with pytest.raises(UserError, match="fade=11: the line at 0 s lasts 10 s"):
        make_script([], story, fade=11)
    with pytest.raises(UserError, match="without a story"):
        make_script(["techno"], None, fade=1)


# ---------------------------------------------------------------------------------------------------------------------- What the stages are given


@pytest.fixture(scope="module")
def model():
    """A model whose semantic and coarse stages may be guided."""
    plain = tiny_config()
    stages = tuple(dataclasses.replace(stage, prefix_dropout=0.1) if stage.name != "fine" else stage for stage in plain.stages)
    return tiny_musiclm(dataclasses.replace(plain, stages=stages))


def drawn_with(model, monkeypatch, prompt, **request):
    """{stage: (the conditions, what is excluded)} of the first draws."""
    given, draw = {}, StageTrack.draw

    def spy(self, conditions, *, excluded=None, **options):
        given.setdefault(self.spec.name, (conditions, excluded))
        return draw(self, conditions, excluded=excluded, **options)

    with monkeypatch.context() as patch:
        patch.setattr(StageTrack, "draw", spy)
        wave = np.concatenate(list(model.stream(prompt, seconds=0.4, **request)), axis=1)
    return given, wave


def test_without_a_prompt_the_condition_is_masked(model, monkeypatch):
    given, wave = drawn_with(model, monkeypatch, None)
    assert (given["semantic"][0]["mulan"] == ABSENT).all() and wave.shape == (1, 9600)
    layout = model.config.layout("semantic")
    assert (layout.prefix_ids(given["semantic"][0]) == layout.mask_id).all()
    assert model.generate([None, "piano"], seconds=0.2).prompts == ("", "piano")


def test_guidance_pushes_away_from_what_is_excluded(model, monkeypatch):
    guided = {"sampling": {"semantic": {"guidance": 3.0}}}
    given, without = drawn_with(model, monkeypatch, "piano", without=["drums"], **guided)
    excluded = model.mulan.text_tokens(["drums"])
    for stage in ("semantic", "coarse"):
        np.testing.assert_array_equal(given[stage][1], excluded)
    layout, conditions = model.config.layout("coarse"), given["coarse"][0]
    ids = layout.keep(layout.prefix_ids({**conditions, "mulan": excluded}), "mulan", num_steps=10)
    np.testing.assert_array_equal(ids[:, :2], layout.prefix_ids({**conditions, "mulan": excluded})[:, :2])
    assert (ids[:, 2:] == layout.mask_id).all() and ids.shape[1] > 2
    assert (drawn_with(model, monkeypatch, "piano", **guided)[0]["semantic"][1] == ABSENT).all()
    # The same condition, pushed away from something, from nothing, and not pushed.
    semantic, mulan = model.config.stage("semantic"), given["semantic"][0]
    track = lambda: StageTrack(semantic, *model._decoder(semantic), SamplingConfig(guidance=500.0), np.zeros((1, 2), np.uint32), rows=1)  # noqa: E731
    codes = []
    for pushed in (excluded, np.full_like(excluded, ABSENT), None):
        one = track()
        one.draw(mulan, until=10, excluded=pushed)
        codes.append(one.codes(0, 10))
    np.testing.assert_array_equal(codes[1], codes[2])
    assert not np.array_equal(codes[0], codes[1])


def test_the_notes_of_a_recording_are_played_anew(model, monkeypatch):
    wave = (0.3 * np.sin(np.arange(24_000) * 0.05)).astype(np.float32)
    notes = model.semantic.encode(wave[None])
    one, two = (np.concatenate(list(model.stream(resynthesize=wave, seed=seed)), axis=1) for seed in (0, 1))
    assert one.shape == two.shape == (1, 24_000) and not np.array_equal(one, two)
    given, draw = [], StageTrack.draw
    monkeypatch.setattr(StageTrack, "draw", lambda self, conditions, **options: (given.append((self.spec.name, conditions)), draw(self, conditions, **options)))
    list(model.stream("piano", resynthesize=wave))
    read = next(conditions["semantic"] for name, conditions in given if name == "coarse")
    np.testing.assert_array_equal(read[0, :, 0], notes[0, : read.shape[1]])
    with pytest.raises(UserError, match="the recording of 0.00 s is too short"):
        model.stream(resynthesize=wave[:100])


def test_wishes_reach_generation(model: MusicLM):
    plain, mixed, excluding = (model.generate([text], seconds=0.3, seed=3).wave for text in ("piano", "0.5: piano | 0.5: drums", "piano without bass"))
    assert not np.array_equal(plain, mixed) and not np.array_equal(plain, excluding)
    np.testing.assert_array_equal(model.generate(["piano"], seconds=0.3, seed=3, without=[]).wave, plain)
    assert Wish("a").texts == ()
