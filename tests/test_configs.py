"""The config of the whole system: JSON round trip, and streams that cannot disagree."""

import dataclasses
import json

import pytest

from musiclm_jax.audio.features import LogMelConfig
from musiclm_jax.configs import MusicLMConfig
from musiclm_jax.errors import UserError
from musiclm_jax.generation.stages import WindowConfig
from musiclm_jax.models.mulan import MuLanConfig
from musiclm_jax.models.soundstream import SoundStreamConfig
from musiclm_jax.models.w2v_bert import W2vBertConfig
from musiclm_jax.records import coerce, differences, from_dict, to_dict

CONFIG = MusicLMConfig(
    soundstream=SoundStreamConfig(num_levels=5, num_codes=7),
    w2v_bert=W2vBertConfig(num_clusters=11),
    mulan=MuLanConfig(num_levels=3, num_codes=13),
    coarse_levels=2,
    windows=WindowConfig(fine_window_sec=2),
)


def test_json_round_trip():
    for config in (MusicLMConfig(), CONFIG):
        again = MusicLMConfig.from_dict(json.loads(json.dumps(config.to_dict())))
        assert again == config and hash(again) == hash(config)


def test_token_sizes_come_from_the_models():
    tokens = CONFIG.tokens
    assert (tokens.mulan_levels, tokens.mulan_codes, tokens.semantic_codes) == (3, 13, 11)
    assert (tokens.acoustic_levels, tokens.acoustic_codes, tokens.coarse_levels, tokens.fine_levels) == (5, 7, 2, 3)
    assert CONFIG.layout("coarse").vocab_size == 3 * 13 + 11 + 2 * 7
    assert CONFIG.sampling("fine").temperature == 0.4
    with pytest.raises(UserError, match="stage 'rough'"):
        CONFIG.layout("rough")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"soundstream": SoundStreamConfig(strides=(2, 3))}, "frames of 6 samples"),
        ({"w2v_bert": W2vBertConfig(mel=LogMelConfig(hop_samples=160))}, "a token each 640 samples"),
        ({"mulan": MuLanConfig(mel=LogMelConfig(sample_rate_hz=16_000, max_hz=8000.0))}, "mulan.mel.sample_rate_hz=16000"),
        ({"coarse_levels": 12}, "coarse_levels=12 of acoustic_levels=12"),
    ],
)
def test_models_that_do_not_fit_together_are_refused(wrong, message):
    with pytest.raises(UserError, match=message):
        MusicLMConfig(**wrong)


def test_missing_unknown_and_wrong_fields_are_named():
    data = CONFIG.to_dict()
    with pytest.raises(UserError, match=r"model\.soundstream\.num_level is not a field .* did you mean num_levels"):
        MusicLMConfig.from_dict(data | {"soundstream": data["soundstream"] | {"num_level": 3}})
    with pytest.raises(UserError, match="model lacks coarse_levels"):
        MusicLMConfig.from_dict({key: value for key, value in data.items() if key != "coarse_levels"})
    with pytest.raises(UserError, match=r"model\.coarse_levels is 'four', expected int"):
        MusicLMConfig.from_dict(data | {"coarse_levels": "four"})
    with pytest.raises(UserError, match=r"model\.audio is 3, expected the fields of AudioSpec"):
        MusicLMConfig.from_dict(data | {"audio": 3})


@dataclasses.dataclass(frozen=True)
class Leaf:
    pair: tuple[int, str] = (1, "a")
    nested: tuple[tuple[int, int], ...] = ((1, 2), (3, 4))
    maybe: float | None = None
    flag: bool = False


def test_from_dict_restores_types():
    assert from_dict(Leaf, json.loads(json.dumps(to_dict(Leaf(maybe=2.0))))) == Leaf(maybe=2.0)
    assert from_dict(Leaf, to_dict(Leaf()) | {"maybe": 3}) == Leaf(maybe=3.0)
    with pytest.raises(UserError, match=r"pair\[1\] is 2, expected str"):
        from_dict(Leaf, to_dict(Leaf()) | {"pair": [1, 2]})
    with pytest.raises(UserError, match="flag is 1, expected bool"):
        from_dict(Leaf, to_dict(Leaf()) | {"flag": 1})
    with pytest.raises(TypeError, match="set"):
        to_dict({1})


def test_coerce_brings_values_to_their_types():
    coerced = coerce(Leaf(pair=[1, "a"], nested=[[5, 6]], maybe=3))
    assert coerced == Leaf(nested=((5, 6),), maybe=3.0) and isinstance(coerced.maybe, float) and hash(coerced)
    with pytest.raises(UserError, match=r"config\.flag is 1, expected bool"):
        coerce(Leaf(flag=1))


def test_differences_name_the_path():
    assert differences({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}}) == ["a.c: 2, was 3"]
    assert differences({"a": 1}, {}) == ["a: 1, was None"] and differences([1], [1]) == []
