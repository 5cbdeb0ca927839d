"""Our own WordPiece vocabulary: learned from the captions, applied by the `tokenizers` library.

The library's trainer numbers its pieces by the order of a randomly seeded hash map, so that two runs on the same captions give two
vocabularies, and with them two sets of weights that cannot be exchanged. The pieces are therefore learned here, in one exact order.
"""

from __future__ import annotations

import collections
import heapq
from collections.abc import Iterable, Sequence

import numpy as np
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from musiclm_jax.arrays import Bool, Int
from musiclm_jax.errors import UserError
from musiclm_jax.records import parse_json

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
PAD_ID, UNK_ID, CLS_ID, SEP_ID = range(4)
# Marks a piece that continues a word.
_CONTINUES = "##"


class TextTokenizer:
    """BERT's tokenization (arXiv 1810.04805): lower case, accents stripped, [CLS] pieces [SEP], padded with [PAD].

    `to_json` and `from_json` carry it inside the metadata of mulan.safetensors. Instances never change.
    """

    def __init__(self, pieces: Sequence[str]):
        """pieces: by id, each once, SPECIAL_TOKENS first."""
        if tuple(pieces[:4]) != SPECIAL_TOKENS:
            raise ValueError(f"expected the ids 0-3 to be {SPECIAL_TOKENS}, got {tuple(pieces[:4])}: make it with TextTokenizer.train")
        if len(set(pieces)) < len(pieces):
            raise ValueError(f"expected each piece once, got {len(pieces) - len(set(pieces))} of {len(pieces)} again: remove the doubles")
        self._tokenizer = tokenizers.Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]"))
        self._tokenizer.normalizer, self._tokenizer.pre_tokenizer = _normalizer(), pre_tokenizers.BertPreTokenizer()
        self._tokenizer.post_processor = processors.BertProcessing(("[SEP]", SEP_ID), ("[CLS]", CLS_ID))
        self._tokenizer.decoder = decoders.WordPiece(prefix=_CONTINUES)

    @classmethod
    def train(cls, captions: Iterable[str], *, vocab_size: int) -> TextTokenizer:
        """Learns at most `vocab_size` pieces, specials and single letters included. The same captions give the same ids, in any order."""
        normalizer, splitter = _normalizer(), pre_tokenizers.BertPreTokenizer()
        words = collections.Counter(word for text in captions for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text)))
        if not words:
            raise UserError("the captions are all empty, so there is no vocabulary to learn: check the `captions` of metadata.jsonl")
        return cls([*SPECIAL_TOKENS, *learn_pieces(words, num_pieces=vocab_size - len(SPECIAL_TOKENS))])

    @classmethod
    def from_json(cls, text: str, *, where: str = "the text vocabulary") -> TextTokenizer:
        """The inverse of `to_json`. Only the pieces are read; how text is split into them is this class's, whatever the file asks for.

        where: what the message calls it, such as the path of the file. Raises UserError for anything but such a vocabulary.
        """
        try:
            ids = parse_json(text)["model"]["vocab"]
            pieces = sorted(ids, key=ids.get)
            if [ids[piece] for piece in pieces] != list(range(len(pieces))):
                raise ValueError(f"expected ids from 0 to {len(pieces) - 1}, each once")
            return cls(pieces)
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            says = f"expected pieces with the ids 0, 1, 2, ..., {', '.join(SPECIAL_TOKENS)} first"
            raise UserError(f"{where} is not one that musiclm_jax wrote, {says}: copy the file again, or make it again") from error

    def to_json(self) -> str:
        return self._tokenizer.to_str()

    @property
    def vocab_size(self) -> int:
        return self._tokenizer.get_vocab_size()

    def num_tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, [CLS] and [SEP] included. More than the model's max_tokens: `encode` cuts it, and a caller may warn."""
        return [len(encoding.ids) for encoding in self._encode(texts)]

    def encode(self, texts: Sequence[str], *, max_tokens: int) -> tuple[Int[np.ndarray, "B T"], Bool[np.ndarray, "B T"]]:
        """Ids int32 [B, max_tokens] and mask bool [B, max_tokens], True = a token. Longer texts are cut and still end in [SEP].

        Raises UserError for a text without a single visible character.
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
        """The text of one row of ids, without [PAD], [CLS] and [SEP]: lower case, spaces regularised."""
        return self._tokenizer.decode([int(i) for i in ids if i not in (PAD_ID, CLS_ID, SEP_ID)], skip_special_tokens=False)

    def normalize(self, text: str) -> str:
        """The text as the model reads it: lower case, without accents, spaces regularised."""
        return " ".join(self._tokenizer.normalizer.normalize_str(text).split())

    def words(self, text: str) -> list[str]:
        """The words of a text, punctuation left out."""
        return [word for word, _ in self._tokenizer.pre_tokenizer.pre_tokenize_str(self.normalize(text)) if any(map(str.isalnum, word))]

    def is_piece(self, word: str) -> bool:
        """Whether a word is one piece of the vocabulary."""
        return self._tokenizer.token_to_id(word) is not None

    def is_spelled(self, word: str) -> bool:
        """Whether a word can be put together from pieces."""
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
    """Word pieces in the order in which they are learned: letters, then the most frequent pair of neighbours, joined, again and again.

    Args: words: how often each word occurs. num_pieces: at most so many; fewer if every word is one piece before that, more if there are
    more distinct letters, all of which are kept. Ties go to the pair that sorts first.
    """
    spelled = [[word[0], *(_CONTINUES + letter for letter in word[1:])] for word in sorted(words)]
    weights = [words[word] for word in sorted(words)]
    pieces = sorted({piece for spelling in spelled for piece in spelling})
    counts, homes = collections.Counter(), collections.defaultdict(set)
    for index, spelling in enumerate(spelled):
        for pair in zip(spelling, spelling[1:]):
            counts[pair] += weights[index]
            homes[pair].add(index)
    # Entries of the queue go stale when a count changes; a fresh one is pushed then and the stale one is skipped.
    queue = [(-count, pair) for pair, count in counts.items()]
    heapq.heapify(queue)
    known = set(pieces)
    while queue and len(pieces) < num_pieces:
        count, pair = heapq.heappop(queue)
        if count == 0 or counts[pair] != -count:
            continue
        joined = pair[0] + pair[1].removeprefix(_CONTINUES)
        if joined not in known:  # Two paths may lead to one piece.
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
    """`spelling` with every `pair` of neighbours replaced by `joined`, from the left."""
    out = []
    for piece in spelling:
        if out and (out[-1], piece) == pair:
            out[-1] = joined
        else:
            out.append(piece)
    return out
