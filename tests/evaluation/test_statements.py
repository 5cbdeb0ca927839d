import dataclasses

import numpy as np
import pytest

from musiclm_jax.corpus.clip import clip_split
from musiclm_jax.corpus.synthesized.captions import KINDS, write_captions
from musiclm_jax.corpus.synthesized.clip import SynthesizedCorpus
from musiclm_jax.evaluation.statements import ATTRIBUTES, facts, lacking, num_disagreements, stated


@pytest.mark.parametrize(
    "caption, says",
    [
        ("Rhodes Electric Piano March in F Sharp Minor", {"instrument": {"electric piano"}, "style": {"march"}, "key": {"F# minor"}, "mode": {"minor"}}),
        ("A sad tune in a minor key with a steady drum beat.", {"mode": {"minor"}, "drums": {True}}),
        ("In A minor and without any drums", {"key": {"A minor"}, "mode": {"minor"}, "drums": {False}}),
        ("the tempo is medium, about 95 bpm", {"tempo": {"mid"}, "bpm": {95}}),
        ("Relaxed music", {"dynamics": {"medium"}, "tempo": {"slow", "mid"}}),
        ("light music, slow", {"dynamics": {"soft", "medium"}, "tempo": set()}),  # "light" is fast.
        ("soft lo-fi, 3/4", {"dynamics": {"soft"}, "style": {"lo-fi"}, "meter": {"3/4"}}),
        ("music of a belligerent, quickening kind", {}),
    ],
)
def test_stated(caption, says):
    assert stated(caption) == says


def test_captions_of_the_corpus_state_what_their_clips_are():
    counts = {name: 0 for name in ATTRIBUTES}
    for index in range(0, 300, 3):
        attributes, _ = SynthesizedCorpus(1).notes(index)
        truth = facts(dataclasses.asdict(attributes))
        for kind, caption in zip(KINDS, write_captions(attributes, split=clip_split(index), rng=np.random.default_rng(index)), strict=True):
            statements = stated(caption)
            assert num_disagreements(statements, truth) == 0, (caption, truth)
            assert all(statements.values())
            if kind in ("tags", "one full", "two full"):
                assert {"instrument", "drums", "mode", "tempo"} <= statements.keys(), caption
            for name in statements:
                counts[name] += 1
    assert min(counts.values()) > 0, counts


def test_disagreements_are_counted():
    truth = {"instrument": "bell", "drums": True, "mode": "major", "tempo": "slow"}
    assert num_disagreements(stated("slow piano music in a minor key with drums"), truth) == 2


def test_attributes_that_are_not_those_of_the_corpus_are_named():
    assert lacking({name: 0 for name in ("instrument", "drums", "mode", "key", "tempo", "meter")}) == ["style", "dynamics", "tempo_bpm"]
    whole = SynthesizedCorpus(1).describe(0).attributes
    assert lacking(whole) == []
    for change in ({"instrument": ["piano"]}, {"key": None}, {"tempo_bpm": "fast"}, {"tempo_bpm": float("nan")}):
        assert lacking(whole | change) == list(change)
