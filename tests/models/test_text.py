import json
import subprocess
import sys

import numpy as np
import pytest

from musiclm_jax.errors import UserError
from musiclm_jax.models.text import CLS_ID, PAD_ID, SEP_ID, SPECIAL_TOKENS, UNK_ID, TextTokenizer, learn_pieces

CAPTIONS = [
    f"A {mood} {lead} {style} in {key} at {bpm} bpm."
    for mood, bpm in (("calm", 61), ("bright", 89), ("slow", 113))
    for lead in ("piano", "guitar", "Flöte")
    for style, key in (("march", "C# minor"), ("waltz", "D major"))
]


@pytest.fixture(scope="module")
def tokenizer():
    return TextTokenizer.train(CAPTIONS, vocab_size=97)


def test_round_trip_ignores_case_and_accents(tokenizer):
    ids, mask = tokenizer.encode(["A CALM flöte  march in c# minor at 61 bpm."], max_tokens=31)
    assert ids.dtype == np.int32 and mask.dtype == bool and ids.shape == mask.shape == (1, 31)
    assert tokenizer.decode(ids[0]) == "a calm flote march in c # minor at 61 bpm."
    again, _ = tokenizer.encode([tokenizer.decode(ids[0])], max_tokens=31)
    np.testing.assert_array_equal(ids, again)


def test_layout_of_a_row(tokenizer):
    ids, mask = tokenizer.encode(["piano", "slow piano waltz"], max_tokens=7)
    lengths = tokenizer.num_tokens(["piano", "slow piano waltz"])
    np.testing.assert_array_equal(mask.sum(1), lengths)
    assert (ids[:, 0] == CLS_ID).all()
    for row, length in enumerate(lengths):
        assert ids[row, length - 1] == SEP_ID and (ids[row, length:] == PAD_ID).all()
        assert mask[row, :length].all()


def test_json_round_trip(tokenizer):
    copy = TextTokenizer.from_json(tokenizer.to_json())
    assert copy.to_json() == tokenizer.to_json() and copy.vocab_size == tokenizer.vocab_size
    np.testing.assert_array_equal(copy.encode(CAPTIONS, max_tokens=19)[0], tokenizer.encode(CAPTIONS, max_tokens=19)[0])


def test_only_the_pieces_are_read(tokenizer):
    """Text is split as the model learned it, whatever a file asks for: cut, padded, by another splitter."""
    data = json.loads(tokenizer.to_json())
    data |= {"truncation": {"max_length": 3}, "padding": {"length": 99}, "normalizer": None, "pre_tokenizer": {"type": "Regex", "pattern": "(a+)+"}}
    assert TextTokenizer.from_json(json.dumps(data)).to_json() == tokenizer.to_json()


SPECIAL = {token: i for i, token in enumerate(SPECIAL_TOKENS)}


@pytest.mark.parametrize(
    "vocabulary",
    [{}, [], None, "abc", {"a": 0}, SPECIAL | {"[PAD]": 3, "[SEP]": 0}, SPECIAL | {"\ud800": 4}, *(SPECIAL | {"a": i} for i in (5, 3, "4", None, -1, 2**70))],
)
def test_a_damaged_vocabulary_is_a_user_error(vocabulary):
    for text in (json.dumps({"model": {"vocab": vocabulary}}), json.dumps({"model": vocabulary}), json.dumps(vocabulary), "[" * 100_000, "\xff", ""):
        with pytest.raises(UserError) as error:
            TextTokenizer.from_json(text, where="b/mulan.safetensors")
        assert str(error.value).startswith("b/mulan.safetensors is not in the format that musiclm_jax writes, ") and len(str(error.value).splitlines()) == 1


def test_training_is_deterministic_in_any_order_and_process(tokenizer):
    assert TextTokenizer.train(reversed(CAPTIONS), vocab_size=97).to_json() == tokenizer.to_json()
    program = f"from musiclm_jax.models.text import TextTokenizer; print(TextTokenizer.train({CAPTIONS!r}, vocab_size=97).to_json(), end='')"
    output = subprocess.run([sys.executable, "-X", "utf8", "-c", program], capture_output=True, check=True, encoding="utf8").stdout
    assert output == tokenizer.to_json()


def test_pieces_by_hand():
    # l+o and o+w both occur 7 times: ("##o", "##w") sorts before ("l", "##o"). Then l+ow (7), then e+r (2).
    pieces = learn_pieces({"low": 5, "lower": 2}, num_pieces=9)
    assert pieces == ["##e", "##o", "##r", "##w", "l", "##ow", "low", "##er", "lower"]
    assert learn_pieces({"low": 5, "lower": 2}, num_pieces=7) == pieces[:7]
    assert learn_pieces({"low": 5, "lower": 2}, num_pieces=99) == pieces


def test_pieces_are_the_naive_ones():
    words = {"aabaab": 3, "abab": 5, "baa": 2, "aaaa": 4, "bba": 1}

    def naive(limit):
        spelled = {word: [word[0], *("##" + c for c in word[1:])] for word in words}
        pieces = sorted({p for s in spelled.values() for p in s})
        while len(pieces) < limit:
            counts = {}
            for word, spelling in spelled.items():
                for pair in zip(spelling, spelling[1:]):
                    counts[pair] = counts.get(pair, 0) + words[word]
            if not counts:
                break
            best = min(counts, key=lambda pair: (-counts[pair], pair))
            joined = best[0] + best[1][2:]
            pieces += [joined] * (joined not in pieces)
            for word, spelling in spelled.items():
                i, out = 0, []
                while i < len(spelling):
                    hit = tuple(spelling[i : i + 2]) == best
                    out.append(joined if hit else spelling[i])
                    i += 1 + hit
                spelled[word] = out
        return pieces

    for limit in (5, 9, 99):
        assert learn_pieces(words, num_pieces=limit) == naive(limit)


def test_long_text_is_cut_and_can_be_noticed(tokenizer):
    text = "slow piano waltz in d major at 89 bpm. " * 5
    ids, mask = tokenizer.encode([text], max_tokens=11)
    whole, _ = tokenizer.encode([text], max_tokens=200)
    assert tokenizer.num_tokens([text])[0] > 11 and mask.all()
    np.testing.assert_array_equal(ids[0, :10], whole[0, :10])
    assert ids[0, 10] == SEP_ID


@pytest.mark.parametrize("prompt", ["", "   ", "\t\n", "\u200b"])
def test_empty_prompt_is_a_user_error(tokenizer, prompt):
    with pytest.raises(UserError, match="empty"):
        tokenizer.encode(["piano", prompt], max_tokens=7)


def test_unicode_is_fine(tokenizer):
    ids, mask = tokenizer.encode(["钢琴 🎹 piano", "ПИАНО"], max_tokens=13)
    assert UNK_ID in ids[0] and mask[:, 2].all()
    assert tokenizer.encode(["piano"], max_tokens=13)[0][0, 1] in ids[0]


def test_misuse_is_named(tokenizer):
    with pytest.raises(ValueError, match="list of texts"):
        tokenizer.encode("piano", max_tokens=7)
    with pytest.raises(ValueError, match="max_tokens=2"):
        tokenizer.encode(["piano"], max_tokens=2)
    with pytest.raises(UserError, match="captions"):
        TextTokenizer.train(["", " "], vocab_size=50)
    with pytest.raises(ValueError, match="ids 0-3"):
        TextTokenizer(["a", *SPECIAL_TOKENS])
    with pytest.raises(ValueError, match="each piece once, got 1 of 6"):
        TextTokenizer([*SPECIAL_TOKENS, "a", "a"])
    assert SPECIAL_TOKENS[PAD_ID] == "[PAD]"
