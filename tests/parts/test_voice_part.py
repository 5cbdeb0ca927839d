"""A stage that accompanies voices, as a step of `fit`."""

import dataclasses
import functools

import numpy as np
import pytest
from test_melody_part import OtherTokens
from tiny_parts import write_clips, write_metadata

from musiclm_jax import bundle
from musiclm_jax.cli.gin_config import load_config
from musiclm_jax.data.clips import Clip, ClipStore
from musiclm_jax.errors import UserError
from musiclm_jax.models.tokenizers import SemanticTokenizer
from musiclm_jax.parts import w2v_bert
from musiclm_jax.parts.fit import run_step
from musiclm_jax.parts.part import PREPARE
from musiclm_jax.parts.voice import VoiceTokens, voices_of
from musiclm_jax.tasks.stage import StageRecipe
from musiclm_jax.tokens import ABSENT
from musiclm_jax.training.optim import OptimizerConfig


def store(*clips: tuple[str, str | None, str]) -> ClipStore:
    rows = tuple(Clip(name, 0, 48_000, (), split, {}, voice=voice) for name, voice, split in clips)
    return ClipStore(np.zeros(0, np.int16), rows, 24_000)


def test_voices_are_found_by_name_in_their_split():
    assert voices_of(store(("band", "lead", "train"), ("lead", None, "train"), ("mix", None, "test"))) == (1, None, None)
    with pytest.raises(UserError, match="the voice 'leed' of band is not among the clips: list it"):
        voices_of(store(("band", "leed", "train"), ("lead", None, "train")))
    with pytest.raises(UserError, match="the voice 'lead' of band is in the other split"):
        voices_of(store(("band", "lead", "train"), ("lead", None, "test")))
    with pytest.raises(UserError, match='no training clip has a "voice".*--stems'):
        voices_of(store(("lead", None, "train")))


def test_crops_have_the_voice_of_their_seconds():
    tokens = VoiceTokens(np.arange(100, dtype=np.int16), ((0, 60), None, (60, 100)), 25)
    crops = lambda rows: tokens.crops([0, 1, 2, 0], [0.4, 0.0, 1.0, 2.0], 0.8, rows=rows, rng=np.random.default_rng(0), text_share=0.0)  # noqa: E731
    found = crops(np.arange(4))
    assert found.dtype == np.int32 and found.shape == (4, 20)
    assert found[0].tolist() == list(range(10, 30)) and (found[1] == ABSENT).all()
    assert found[2].tolist() == [*range(85, 100), *5 * [ABSENT]] and found[3].tolist() == [*range(50, 60), *10 * [ABSENT]]
    np.testing.assert_array_equal(crops(np.array([3, 1])), found[[3, 1]])


@functools.cache
def config():
    config = load_config("test", ["runs/with_voice.gin"])
    fast = StageRecipe(num_steps=4, optimizer=OptimizerConfig(learning_rate=1e-3, schedule="constant", warmup_steps=1))
    stage = dataclasses.replace(config.part("semantic"), recipe=fast, codebook_init=False)
    return dataclasses.replace(config, parts=(config.part(PREPARE), OtherTokens(), config.part("voice"), stage))


def test_voices_are_tokenized_and_a_stage_is_trained(tmp_path, monkeypatch):
    heard = []
    encode = lambda wave: heard.append(np.asarray(wave)) or np.full((len(wave), wave.shape[1] // 960), 3)  # noqa: E731
    tokenizer = SemanticTokenizer(config().model.w2v_bert, {})
    monkeypatch.setattr(SemanticTokenizer, "encode", lambda self, wave: encode(wave))
    monkeypatch.setattr(w2v_bert, "tokenizer", lambda run: tokenizer)
    data = write_clips(tmp_path / "data", number=4)
    voices = {0: "1.wav", 2: "3.wav"}  # Bands, and their leads.
    lines = [{"file_name": f"{i}.wav", "captions": ["a tone"], "split": "test" if i > 1 else "train"} for i in range(4)]
    write_metadata(data, [line | ({"voice": voices[i]} if i in voices else {}) for i, line in enumerate(lines)])
    results = {step: run_step(step, data, config=config(), workdir=tmp_path / "work") for step in ("random", "voice_tokens", "semantic")}
    assert results["voice_tokens"]["voices"] == 2 and np.isfinite(results["semantic"]["eval_loss"])
    codes = np.load(tmp_path / "work" / "voice_tokens" / "voice.npy")
    assert len(codes) == sum(-(-(48_000 + 7001 * i) // 960) for i in (1, 3)) and (codes == 3).all()
    # Noise was added: no sample of a clip's zero padding is 0.
    assert heard and all(0.05 < np.sqrt(np.mean(np.square(wave[0]))) < 0.2 for wave in heard)
    weights, _ = bundle.read_arrays(tmp_path / "work" / "semantic" / "variables.safetensors")
    assert weights["params"]["embed"]["embedding"].shape == (7 + 2 * 3 + 7 + 1, 8)


def test_no_step_of_a_model_without_a_voice_changes():
    plain, sings = load_config("test"), load_config("test", ["runs/with_voice.gin"])
    assert set(sings.steps) - set(plain.steps) == {"voice_tokens"} and "voice" not in repr([step.settings for step in plain.steps.values()])
    assert {"voice_tokens", "semantic_tokens"} <= set(sings.steps["semantic"].needs) and "voice_tokens" not in sings.steps["coarse"].needs
    shapes = {name: value.shape for name, value in sings.part("semantic").batch_shapes(sings).items()}
    assert shapes == {"voice": (2, 50), "mulan": (2, 2), "semantic": (2, 50)}
