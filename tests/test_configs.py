"""The config of the whole system: JSON round trip, and streams that cannot disagree."""

import dataclasses
import json

import pytest

from musiclm_jax.audio.features import LogMelConfig
from musiclm_jax.configs import MusicLMConfig
from musiclm_jax.errors import UserError
from musiclm_jax.generation.stages import StageSpec, musiclm_stages
from musiclm_jax.models.melody import MelodyConfig
from musiclm_jax.models.mulan import MuLanConfig
from musiclm_jax.models.soundstream import SoundStreamConfig
from musiclm_jax.models.w2v_bert import W2vBertConfig
from musiclm_jax.specs import Stream
from musiclm_jax.tokens import Levels

CONFIG = MusicLMConfig(
    codec=SoundStreamConfig(num_levels=5, num_codes=7),
    w2v_bert=W2vBertConfig(num_clusters=11),
    mulan=MuLanConfig(num_levels=3, num_codes=13),
    stages=musiclm_stages(coarse_levels=2),
    skipped_stages=("fine",),
)


def test_json_round_trip():
    for config in (MusicLMConfig(), CONFIG):
        again = MusicLMConfig.from_dict(json.loads(json.dumps(config.to_dict())))
        assert again == config and hash(again) == hash(config)


def test_a_melody_embedder_adds_a_stream_and_a_model():
    melody = MelodyConfig(num_levels=7, num_codes=17)
    semantic, *others = musiclm_stages(coarse_levels=2)
    semantic = dataclasses.replace(semantic, prefix=(Levels("melody", 0, 3), *semantic.prefix))
    config = dataclasses.replace(CONFIG, melody=melody, stages=(semantic, *others))
    assert config.streams["melody"] == Stream("melody", 7, 17, steps=3, optional=True)
    assert config.models == ("codec", "w2v_bert", "mulan", "melody", "semantic", "coarse", "fine")
    assert config.layout("semantic").vocab_size == 3 * 17 + 3 * 13 + 11 and config.variable_shapes("melody")["quantizer"]["codebooks"].shape == (7, 17, 192)
    assert MusicLMConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config and "melody" not in CONFIG.to_dict()
    config.check_melody()
    with pytest.raises(UserError, match="reads a melody in windows of 3 s, and the embedder's have 4 s"):
        dataclasses.replace(config, stages=(dataclasses.replace(semantic, window_sec=3.0, hop_sec=3.0), *others))
    with pytest.raises(UserError, match="no part writes the stream 'melody'"):
        dataclasses.replace(config, melody=None)
    with pytest.raises(UserError, match="melody.mel.sample_rate_hz=16000"):
        dataclasses.replace(config, melody=MelodyConfig(mel=LogMelConfig(sample_rate_hz=16_000, max_hz=8000.0)))


def test_streams_come_from_the_models():
    assert {name: (stream.levels, stream.codes, stream.rate_hz) for name, stream in CONFIG.streams.items()} == {
        "mulan": (3, 13, 0),
        "semantic": (1, 11, 25),
        "acoustic": (5, 7, 50),
    }
    assert CONFIG.layout("coarse").vocab_size == 3 * 13 + 11 + 2 * 7 and CONFIG.coarse_levels == 2
    assert CONFIG.stage("fine").sampling.temperature == 0.4 and CONFIG.models == ("codec", "w2v_bert", "mulan", "semantic", "coarse", "fine")
    with pytest.raises(UserError, match="stage 'rough'"):
        CONFIG.layout("rough")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"codec": SoundStreamConfig(strides=(2, 3))}, "frames of 6 samples"),
        ({"w2v_bert": W2vBertConfig(mel=LogMelConfig(hop_samples=160))}, "one token per 640 samples"),
        ({"mulan": MuLanConfig(mel=LogMelConfig(sample_rate_hz=16_000, max_hz=8000.0))}, "mulan.mel.sample_rate_hz=16000"),
        ({"stages": musiclm_stages(coarse_levels=12)}, "stage 'fine': levels 12 to 12 of 'acoustic', which has 12"),
        ({"stages": (*musiclm_stages(), musiclm_stages()[0])}, "choose a different name for each"),
        ({"stages": (StageSpec("mulan", Levels("semantic"), (Levels("mulan"),)),)}, "not codec, w2v_bert, mulan or melody"),
        ({"stages": (StageSpec("toy", Levels("semantic"), (Levels("tempo"),)),)}, "no part writes the stream 'tempo'"),
        ({"skipped_stages": ("fin",)}, "skipped_stages has 'fin': choose from semantic, coarse, fine"),
    ],
)
def test_models_that_do_not_fit_together_are_refused(wrong, message):
    with pytest.raises(UserError, match=message):
        MusicLMConfig(**wrong)


def test_unknown_and_wrong_fields_are_named_and_missing_ones_take_their_default():
    data = CONFIG.to_dict()
    with pytest.raises(UserError, match=r"model\.codec\.num_level is not a field .* did you mean num_levels"):
        MusicLMConfig.from_dict(data | {"codec": data["codec"] | {"num_level": 3}})
    assert MusicLMConfig.from_dict({key: value for key, value in data.items() if key != "skipped_stages"}).skipped_stages == ()  # The default.
    with pytest.raises(UserError, match="model.codec lacks its kind: choose 'soundstream' or 'spectral'"):
        MusicLMConfig.from_dict(data | {"codec": {}})
    stages = [data["stages"][0] | {"max_windows": "four"}, *data["stages"][1:]]
    with pytest.raises(UserError, match=r"model\.stages\[0\]\.max_windows is 'four', expected a whole number"):
        MusicLMConfig.from_dict(data | {"stages": stages})
    with pytest.raises(UserError, match=r"model\.audio is 3, expected the fields of AudioSpec"):
        MusicLMConfig.from_dict(data | {"audio": 3})
