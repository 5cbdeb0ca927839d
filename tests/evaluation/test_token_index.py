"""The index of training tokens and the search for the closest passage, against a search by hand; and tokens of a tiny model."""

import dataclasses
import json

import numpy as np
import pytest
from tiny_musiclm import tiny_config, tiny_musiclm
from tiny_parts import write_clips

from musiclm_jax import audio
from musiclm_jax.errors import UserError
from musiclm_jax.evaluation import token_index
from musiclm_jax.evaluation.identity import tokenizer_name
from musiclm_jax.evaluation.token_index import TokenIndex, build_index, check_copies, check_index, format_passage, nearest_passage, read_index, tokenize

MODEL = tiny_musiclm()


def make_index(*clips):
    names = tuple(f"{i}.wav" for i in range(len(clips)))
    lengths = np.array([len(clip) for clip in clips])
    return TokenIndex("w2v-bert@0", 25, names, ((0, 0),) * len(clips), lengths, np.concatenate(clips).astype(np.int16))


def by_hand(index, tokens, window):
    """The largest number of equal tokens over all passages."""
    best = 0
    for i in range(len(index.names)):
        clip = np.pad(index.clip(i), window, constant_values=-1)
        for place in range(len(clip) - window + 1):
            for at in range(len(tokens) - window + 1):
                best = max(best, int(np.sum(clip[place : place + window] == tokens[at : at + window])))
    return best


@pytest.mark.parametrize("chunk", [1 << 16, 7])
def test_the_search_finds_what_a_search_by_hand_finds(chunk, monkeypatch):
    monkeypatch.setattr(token_index, "_CHUNK", chunk)
    rng = np.random.default_rng(0)
    index = make_index(*(rng.integers(5, size=length) for length in (31, 3, 17, 11)))
    for length in (2, 6, 7, 19):
        tokens = rng.integers(5, size=length)
        found = nearest_passage(index, tokens, num_tokens=7)
        assert found.num_tokens == min(7, length) and found.num_equal == by_hand(index, tokens, found.num_tokens)
        # The passage is where the result says.
        at, place = round(found.at_sec * 25), round(found.second * 25)
        clip = np.pad(index.clip(int(found.file_name[0])), (0, 19), constant_values=-1)
        passage = tokens[at : at + found.num_tokens]
        assert any(np.sum(clip[place : place + found.num_tokens - cut] == passage[cut:]) == found.num_equal for cut in range(found.num_tokens))


def test_a_copy_is_found_where_it_is():
    rng = np.random.default_rng(1)
    clips = [rng.integers(400, size=700) for _ in range(5)]
    index = make_index(*clips)
    tokens = rng.integers(400, size=250)
    tokens[40:165] = clips[3][300:425]
    tokens[100] = 401
    found = nearest_passage(index, tokens)
    assert (found.file_name, found.second, found.num_equal, found.num_tokens) == ("3.wav", 12.0, 124, 125)
    assert found.at_sec == pytest.approx(40 / 25) and found.share == 124 / 125
    assert nearest_passage(index, tokens, without=3).num_equal < 10
    # A passage is never in two clips.
    tokens = np.concatenate([clips[0][-60:], clips[1][:65]])
    assert nearest_passage(index, tokens).num_equal < 80
    line = format_passage(found, dataclasses.replace(index, typical=(0.1, 0.2, 0.9)))
    assert line.startswith("3.wav at 12.0 s: 99 % of 125 tokens from 1.6 s on are equal (") and line.endswith("20 %, at most 90 %)")


def test_waves_are_tokenized_in_windows():
    rng = np.random.default_rng(0)
    rate, samples = 25, MODEL.config.w2v_bert.token_samples
    wave = (0.3 * rng.standard_normal(samples * (35 * rate + 3) - 7)).astype(np.float32)
    tokens = tokenize(MODEL.semantic, wave, rate_hz=rate)
    assert len(tokens) == 35 * rate + 3
    np.testing.assert_array_equal(tokens[: 30 * rate], MODEL.semantic.encode(wave[None, : 30 * rate * samples])[0])
    np.testing.assert_array_equal(tokens[30 * rate :], MODEL.semantic.encode(np.pad(wave, (0, 7))[None, -30 * rate * samples :])[0, -(5 * rate + 3) :])
    short = wave[: 3 * samples - 5]
    assert len(tokenize(MODEL.semantic, short, rate_hz=rate)) == 3


def test_an_index_is_built_continued_and_read(tmp_path, monkeypatch):
    data, out = write_clips(tmp_path / "clips", number=3, seconds=6.0), tmp_path / "index.npz"
    index, skipped = build_index(MODEL, data, out)
    assert index.names == ("0.wav", "1.wav", "2.wav") and not skipped and len(index.typical) == 3
    again = read_index(out)
    np.testing.assert_array_equal(again.tokens, index.tokens)
    assert dataclasses.replace(again, lengths=index.lengths, tokens=index.tokens).__dict__.items() >= {"names": index.names, "stamps": index.stamps}.items()
    (found,) = check_copies(MODEL, index, [audio.read(data / "1.wav")])
    assert found.share == 1 and found.num_tokens == 125
    # Only what is new or has changed is tokenized, and what is gone leaves the index.
    read = []
    monkeypatch.setattr(token_index, "tokenize", lambda *args, **kwargs: read.append(len(args[1])) or tokenize(*args, **kwargs))
    monkeypatch.setattr(token_index, "_SAVE_EVERY", 1)
    tone = audio.read(data / "1.wav")
    for name in ("0.wav", "metadata.jsonl"):
        (data / name).unlink()
    for name, samples in (("2.wav", tone[:30_000]), ("3.wav", tone[:20_000]), ("4.wav", np.zeros(9_000))):
        audio.write_wav(data / name, samples)
    index, skipped = build_index(MODEL, data, out)
    assert index.names == ("1.wav", "2.wav", "3.wav") and sorted(read) == [20_000, 30_000]
    assert len(skipped) == 1 and "4.wav: is silent" in skipped[0]
    np.testing.assert_array_equal(index.clip(0), again.clip(1))
    for name in ("1.wav", "2.wav", "3.wav"):
        (data / name).unlink()
    with pytest.raises(UserError, match="none of the 1 clips of .*clips can be used, such as .*4.wav: is silent"):
        build_index(MODEL, data, out)


def test_other_files_and_other_tokenizers_are_refused(tmp_path):
    out = tmp_path / "index.npz"
    with pytest.raises(UserError, match="index.npz: there is no such file; make an index"):
        read_index(out)
    out.write_text("{}")
    with pytest.raises(UserError, match="is not an index of tokens; make one with `musiclm evaluate index`"):
        read_index(out)
    np.savez(out, header=json.dumps({"format": 1}), lengths=np.zeros(1), tokens=np.zeros(0))
    with pytest.raises(UserError, match="is not an index of tokens"):
        read_index(out)
    token_index.save_index(out, make_index(np.arange(9)))
    assert read_index(out).names == ("0.wav",)
    with pytest.raises(UserError, match="has tokens of w2v-bert@0, but the model's are of w2v-bert@"):
        check_index(read_index(out), MODEL, out)
    data = write_clips(tmp_path / "clips", number=1)
    with pytest.raises(UserError, match="has tokens of w2v-bert@0"):
        build_index(MODEL, data, out)
    other = tiny_musiclm(tiny_config(w2v_bert=dataclasses.replace(tiny_config().w2v_bert, mel_mean=-4.0)))
    assert tokenizer_name(other) != tokenizer_name(MODEL) == tokenizer_name(tiny_musiclm())
