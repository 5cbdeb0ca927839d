"""The config of the whole system: JSON round trip, and streams that cannot disagree."""

import json

import pytest

from musiclm_jax.audio.features import LogMelConfig
from musiclm_jax.configs import MusicLMConfig
from musiclm_jax.errors import UserError
from musiclm_jax.generation.stages import WindowConfig
from musiclm_jax.models.mulan import MuLanConfig
from musiclm_jax.models.soundstream import SoundStreamConfig
from musiclm_jax.models.w2v_bert import W2vBertConfig

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


def test_unknown_and_wrong_fields_are_named_and_missing_ones_take_their_default():
    data = CONFIG.to_dict()
    with pytest.raises(UserError, match=r"model\.soundstream\.num_level is not a field .* did you mean num_levels"):
        MusicLMConfig.from_dict(data | {"soundstream": data["soundstream"] | {"num_level": 3}})
    assert MusicLMConfig.from_dict({key: value for key, value in data.items() if key != "coarse_levels"}).coarse_levels == 4  # The default.
    with pytest.raises(UserError, match="model.soundstream lacks its kind: choose 'soundstream' or 'spectral'"):
        MusicLMConfig.from_dict(data | {"soundstream": {}})
    with pytest.raises(UserError, match=r"model\.coarse_levels is 'four', expected a whole number"):
        MusicLMConfig.from_dict(data | {"coarse_levels": "four"})
    with pytest.raises(UserError, match=r"model\.audio is 3, expected the fields of AudioSpec"):
        MusicLMConfig.from_dict(data | {"audio": 3})
