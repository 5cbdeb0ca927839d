"""Training batches of token crops for the stages: from the tokens of a clip store, or from a token set of any size. NumPy only."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np

from musiclm_jax.arrays import Float, Int
from musiclm_jax.data.clips import ClipStore
from musiclm_jax.data.order import shuffled
from musiclm_jax.data.prefetch import Rows, Source, map_ahead
from musiclm_jax.data.token_set import TokenSet
from musiclm_jax.data.token_store import ClipTokens, TokenArray, covering_windows, crop_source
from musiclm_jax.errors import UserError
from musiclm_jax.specs import AudioSpec

# Records that `SetCrops.chunks` reads: some hours, which tell the frequencies of pairs of codes.
_COUNTED_RECORDS = 1024


@runtime_checkable
class TokenCrops(Protocol):
    """The token streams of a stage, from which crops are drawn."""

    def source(self, *, split: str, crop_sec: float | int, batch_size: int, seed: int, text_share: float = 0.0, end_share: float = 0.0) -> Source:
        """step -> {stream: int32 tokens} of random crops. text_share: of crops whose MuLan tokens are those of a caption. end_share: of crops
        that are the end of their clip. UserError: no crop fits."""
        ...

    def chunks(self, stream: str, split: str, *, levels: slice) -> Iterator[Int[np.ndarray, "n Q"]] | None:
        """Some or all tokens of a stream, in order, to count them. None: the stream has no rate."""
        ...


@dataclasses.dataclass(frozen=True)
class StoreCrops:
    """Crops of the clips of a store."""

    store: ClipStore
    streams: Mapping[str, ClipTokens]
    spec: AudioSpec

    def source(self, *, split: str, crop_sec: float | int, batch_size: int, seed: int, text_share: float = 0.0, end_share: float = 0.0) -> Source:
        options = {"split": split, "crop_sec": crop_sec, "batch_size": batch_size, "seed": seed, "text_share": text_share, "end_share": end_share}
        return crop_source(self.store, self.streams, spec=self.spec, **options)

    def chunks(self, stream: str, split: str, *, levels: slice) -> Iterator[Int[np.ndarray, "n Q"]] | None:
        tokens = self.streams[stream]
        return tokens.chunks(self.store, split, levels=levels) if isinstance(tokens, TokenArray) else None


@dataclasses.dataclass(frozen=True)
class SetCrops:
    """Crops of the records of a token set. Each record gives one crop an epoch, in an order that is computed and not stored."""

    tokens: TokenSet
    # Names of the streams: "semantic", "acoustic", "mulan".
    streams: tuple[str, ...]
    # MuLan's embeddings [b, D] -> its tokens [b, Q].
    quantize: Callable[[Float[np.ndarray, "b D"]], Int[np.ndarray, "b Q"]]

    def source(self, *, split: str, crop_sec: float | int, batch_size: int, seed: int, text_share: float = 0.0, end_share: float = 0.0) -> Source:
        length = self.tokens.info.audio.semantic_tokens(crop_sec)
        usable = np.flatnonzero(self.tokens.lengths(split) >= length).astype(np.int32)
        if not len(usable):
            raise UserError(f"no {split} record of {self.tokens.path} is as long as a crop of {crop_sec:g} s: make them longer, or train on shorter crops")
        records = self.tokens.records(split)

        def crop(number: int) -> dict[str, np.ndarray]:
            rng = np.random.default_rng([seed, number])
            record = records[int(usable[shuffled(number, len(usable), seed=seed)])]
            last = len(record["semantic"]) - length
            start = int(rng.integers(last + 1))
            start = last if end_share and rng.random() < end_share else start
            return self._crop(record, start, length, rng if rng.random() < text_share else None)

        def source(step: int, rows: Rows = np.arange) -> dict[str, np.ndarray]:
            numbers = [step * batch_size + int(row) for row in rows(batch_size)]
            crops = [found for _, found in map_ahead(crop, numbers)]
            batch = {name: np.stack([each[name] for each in crops]).astype(np.int32) for name in self.streams if name != "mulan"}
            if "mulan" in self.streams:
                batch["mulan"] = np.array(self.quantize(np.stack([each["embedding"] for each in crops])), np.int32)
                for row, each in enumerate(crops):
                    if each["caption"] is not None:
                        batch["mulan"][row] = each["caption"]
            return batch

        return source

    def _crop(self, record: Mapping[str, Any], start: int, length: int, caption_rng: np.random.Generator | None) -> dict[str, np.ndarray | None]:
        """A crop of `length` semantic tokens. caption_rng: draws the caption whose tokens are taken for the audio's. None: the audio's."""
        info, per_token = self.tokens.info, self.tokens.info.audio.frames_per_semantic
        found = {"semantic": record["semantic"][start : start + length], "acoustic": record["acoustic"][per_token * start : per_token * (start + length)]}
        if "mulan" not in self.streams:
            return found
        begin, end = (at / info.audio.semantic_rate_hz for at in (start, start + length))
        windows = {"num_windows": len(record["mulan"]), "window_sec": info.mulan_window_sec, "hop_sec": info.mulan_hop_sec}
        captions = record["caption_tokens"]
        caption = captions[caption_rng.integers(len(captions))] if caption_rng is not None and len(captions) else None
        return found | {"embedding": record["mulan"][covering_windows(begin, end, **windows)].astype(np.float32).mean(axis=0), "caption": caption}

    def chunks(self, stream: str, split: str, *, levels: slice) -> Iterator[Int[np.ndarray, "n Q"]] | None:
        if stream == "mulan":
            return None
        records = self.tokens.records(split)
        numbers = np.unique(np.linspace(0, len(records) - 1, min(_COUNTED_RECORDS, len(records))).astype(int))
        return (tokens.reshape(len(tokens), -1)[:, levels] for tokens in (records[int(number)][stream] for number in numbers))
