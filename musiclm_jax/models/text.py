"""The text tokenizer: a WordPiece vocabulary, learned here from captions and applied by the `tokenizers` library.

The library's trainer numbers pieces in the order of a randomly seeded hash map, so that two runs on the same captions give different vocabularies, and
weights that cannot be exchanged. `learn_pieces` is deterministic.
"""

from __future__ import annotations

import collections
import difflib
import heapq
from collections.abc import Iterable, Sequence

import numpy as np
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from musiclm_jax.arrays import Bool, Int
from musiclm_jax.errors import UserError
from musiclm_jax.files import parse_json

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
PAD_ID, UNK_ID, CLS_ID, SEP_ID = range(4)
# Prefix of pieces that continue a word.
_CONTINUES = "##"


class TextTokenizer:
    """BERT's tokenization (arXiv 1810.04805): lower case, accents stripped, [CLS] pieces [SEP], padded with [PAD].

    The metadata of mulan.safetensors contain it as `to_json` returns it. Instances are immutable.
    """

    def __init__(self, pieces: Sequence[str]):
        """pieces: the vocabulary in the order of ids, without duplicates, SPECIAL_TOKENS first. Raises ValueError for any other list."""
        if tuple(pieces[:4]) != SPECIAL_TOKENS:
            raise ValueError(f"expected the ids 0-3 to be {SPECIAL_TOKENS}, got {tuple(pieces[:4])}: make it with TextTokenizer.train")
        if len(set(pieces)) < len(pieces):
            raise ValueError(f"expected each piece once, got {len(pieces) - len(set(pieces))} of {len(pieces)} again: remove the duplicates")
        self._tokenizer = tokenizers.Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]"))
        self._tokenizer.normalizer, self._tokenizer.pre_tokenizer = _normalizer(), pre_tokenizers.BertPreTokenizer()
        self._tokenizer.post_processor = processors.BertProcessing(("[SEP]", SEP_ID), ("[CLS]", CLS_ID))
        self._tokenizer.decoder = decoders.WordPiece(prefix=_CONTINUES)

    @classmethod
    def train(cls, captions: Iterable[str], *, vocab_size: int) -> TextTokenizer:
        """Learns a vocabulary of at most `vocab_size` pieces, including special tokens and single letters.

        The order of the captions does not matter.

        Raises:
            UserError: all captions are empty.
        """
        normalizer, splitter = _normalizer(), pre_tokenizers.BertPreTokenizer()
        words = collections.Counter(word for text in captions for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text)))
        if not words:
            raise UserError("all captions are empty, so that there is no vocabulary to learn: check the `captions` of metadata.jsonl")
        return cls([*SPECIAL_TOKENS, *learn_pieces(words, num_pieces=vocab_size - len(SPECIAL_TOKENS))])

    @classmethod
    def from_json(cls, text: str, *, where: str = "the text vocabulary") -> TextTokenizer:
        """The inverse of `to_json`. It reads the pieces only: other settings of the text, such as its normalizer, are ignored.

        Args:
            where: the name of the text in error messages, such as the path of its file.

        Raises:
            UserError: the text is not a vocabulary that `to_json` wrote.
        """
        try:
            ids = parse_json(text)["model"]["vocab"]
            pieces = sorted(ids, key=ids.get)
            if [ids[piece] for piece in pieces] != list(range(len(pieces))):
                raise ValueError(f"expected ids from 0 to {len(pieces) - 1}, each once")
            return cls(pieces)
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            expected = f"expected pieces with the ids 0, 1, 2, ..., {', '.join(SPECIAL_TOKENS)} first"
            raise UserError(f"{where} is not in the format that musiclm_jax writes, {expected}: copy the file again, or make it again") from error

    def to_json(self) -> str:
        """The vocabulary as JSON, in the format of the `tokenizers` library."""
        return self._tokenizer.to_str()

    @property
    def vocab_size(self) -> int:
        return self._tokenizer.get_vocab_size()

    def num_tokens(self, texts: Sequence[str]) -> list[int]:
        """Number of tokens of each text, including [CLS] and [SEP]. `encode` truncates texts with more than `max_tokens`. UserError: as in `encode`."""
        return [len(encoding.ids) for encoding in self._encode(texts)]

    def encode(self, texts: Sequence[str], *, max_tokens: int) -> tuple[Int[np.ndarray, "B T"], Bool[np.ndarray, "B T"]]:
        """Tokenizes texts. Returns ids int32 and mask bool, True = a token, both [B, max_tokens]. Longer texts are truncated and still end in [SEP].

        Raises:
            UserError: a text has no visible character.
            ValueError: `max_tokens` is below 3, or `texts` is one string.
        """
        if max_tokens < 3:
            raise ValueError(f"max_tokens={max_tokens} has no room for [CLS], a piece and [SEP]: at least 3")
        ids = np.full((len(texts), max_tokens), PAD_ID, np.int32)
        mask = np.zeros((len(texts), max_tokens), bool)
        for row, encoding in enumerate(self._encode(texts)):
            tokens = encoding.ids if len(encoding.ids) <= max_tokens else [*encoding.ids[: max_tokens - 1], SEP_ID]
            ids[row, : len(tokens)] = tokens
            mask[row, : len(tokens)] = True
        return ids, mask

    def decode(self, ids: Int[np.ndarray, "T"]) -> str:
        """The text of one row of ids, without [PAD], [CLS] and [SEP], in lower case and with single spaces."""
        return self._tokenizer.decode([int(i) for i in ids if i not in (PAD_ID, CLS_ID, SEP_ID)], skip_special_tokens=False)

    def normalize(self, text: str) -> str:
        """The text as the model reads it: in lower case, without accents, with single spaces."""
        return " ".join(self._tokenizer.normalizer.normalize_str(text).split())

    def words(self, text: str) -> list[str]:
        """The normalized words of a text, without punctuation."""
        return [word for word, _ in self._tokenizer.pre_tokenizer.pre_tokenize_str(self.normalize(text)) if any(map(str.isalnum, word))]

    def is_piece(self, word: str) -> bool:
        """Whether a word is one piece of the vocabulary."""
        return self._tokenizer.token_to_id(word) is not None

    def near_words(self, word: str) -> list[str]:
        """Up to three whole words of the vocabulary that are spelled like a word, nearest first."""
        return difflib.get_close_matches(self.normalize(word), self._whole_words(), n=3, cutoff=0.75)

    def some_words(self, count: int = 12) -> list[str]:
        """Some whole words of the vocabulary, the longest ones, which mean most."""
        return sorted(sorted(self._whole_words(), key=lambda word: (-len(word), word))[:count])

    def _whole_words(self) -> list[str]:
        return [piece for piece in self._tokenizer.get_vocab() if piece.isalpha() and len(piece) > 2]

    def is_spelled(self, word: str) -> bool:
        """Whether a word is a sequence of pieces of the vocabulary."""
        return UNK_ID not in self._tokenizer.encode(word).ids

    def _encode(self, texts: Sequence[str]) -> list[tokenizers.Encoding]:
        if isinstance(texts, str):
            raise ValueError(f"expected a list of texts, got one string: pass [{texts!r}]")
        encodings = self._tokenizer.encode_batch(list(texts))
        for text, encoding in zip(texts, encodings, strict=True):
            if len(encoding.ids) == 2:  # [CLS] [SEP]
                raise UserError(f"the prompt {text!r} is empty: describe the music in a few words, such as 'a calm piano melody'")
        return encodings


def _normalizer() -> normalizers.Normalizer:
    return normalizers.BertNormalizer(lowercase=True)


def learn_pieces(words: dict[str, int], *, num_pieces: int) -> list[str]:
    """Learns word pieces by byte-pair encoding: first all letters, then repeatedly the most frequent pair of adjacent pieces, joined.

    Args:
        words: {word: number of occurrences}.
        num_pieces: the largest number of pieces. The result has fewer if each word has become one piece, and more if there are more distinct letters.

    Returns:
        The pieces in the order in which they are learned. Ties go to the pair that sorts first.
    """
    spelled = [[word[0], *(_CONTINUES + letter for letter in word[1:])] for word in sorted(words)]
    weights = [words[word] for word in sorted(words)]
    pieces = sorted({piece for spelling in spelled for piece in spelling})
    counts, homes = collections.Counter(), collections.defaultdict(set)
    for index, spelling in enumerate(spelled):
        for pair in zip(spelling, spelling[1:]):
            counts[pair] += weights[index]
            homes[pair].add(index)
    # When a count changes, a new entry is pushed to the queue, and the old entry is skipped when it is popped.
    queue = [(-count, pair) for pair, count in counts.items()]
    heapq.heapify(queue)
    known = set(pieces)
    while queue and len(pieces) < num_pieces:
        count, pair = heapq.heappop(queue)
        if count == 0 or counts[pair] != -count:
            continue
        joined = pair[0] + pair[1].removeprefix(_CONTINUES)
        if joined not in known:  # Different pairs may join to the same piece.
            known.add(joined)
            pieces.append(joined)
        changed = set()
        for index in homes.pop(pair):
            before, after = spelled[index], _join(spelled[index], pair, joined)
            for sign, spelling in ((-1, before), (1, after)):
                for neighbours in zip(spelling, spelling[1:]):
                    counts[neighbours] += sign * weights[index]
                    homes[neighbours].add(index)
                    changed.add(neighbours)
            spelled[index] = after
        for neighbours in changed:
            heapq.heappush(queue, (-counts[neighbours], neighbours))
    return pieces


def _join(spelling: list[str], pair: tuple[str, str], joined: str) -> list[str]:
    """`spelling` with every adjacent `pair` replaced by `joined`, from the left."""
    out = []
    for piece in spelling:
        if out and (out[-1], piece) == pair:
            out[-1] = joined
        else:
            out.append(piece)
    return out
