"""Tar shards, as of WebDataset: their members are files of the folder, named `shard-000.tar/0001.flac`, with texts beside the audio of the same stem."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from musiclm_jax import tars
from musiclm_jax.buckets import StoreError
from musiclm_jax.data.prefetch import map_ahead
from musiclm_jax.data.walk import AUDIO_SUFFIXES, is_audio, is_hidden, printable, split_names
from musiclm_jax.files import AnyPath

# Suffix of compressed tars -> the program that decompresses them.
_PROGRAMS = {".tar.gz": "gunzip", ".tgz": "gunzip", ".tar.bz2": "bunzip2", ".tar.xz": "unxz", ".tar.zst": "unzstd"}


@dataclasses.dataclass(frozen=True)
class Shards:
    """The members of all tars of a folder."""

    names: tuple[str, ...] = ()
    # (name, reason) of tars and members that cannot be read.
    unusable: tuple[tuple[str, str], ...] = ()
    warnings: tuple[str, ...] = ()


def read_shards(folder: AnyPath, names: Sequence[str], *, listed: bool) -> Shards:
    """The members of the tars among the files `names`. Hidden ones are passed over.

    listed: whether a table says which files are clips. Where none does and there is audio outside of tars, the tars are not read: they may be its archive.
    """
    plain, packed = [name for name in names if name.lower().endswith(tars.SUFFIX)], [name for name in names if name.lower().endswith(tuple(_PROGRAMS))]
    if not listed and any(map(is_audio, names)):
        either = sorted([*plain, *packed])
        advice = "move the tars, or the audio files, into a folder of their own"
        return Shards(warnings=(f"{len(either)} tars are not read, such as {either[0]}, as there are audio files beside them: {advice}",) if either else ())
    found, unusable = [], [(name, f"the tar is compressed, so that no part of it can be read alone; decompress it: {_program(name)}") for name in packed]
    for shard, read in map_ahead(lambda shard: _index(folder / shard), plain):
        if isinstance(read, OSError):
            unusable.append((shard, f"cannot be read ({read.strerror or read}); change its permissions, or move it away"))
            continue
        inside, misnamed = split_names(f"{shard}/{name}" for name in read.members if not is_hidden(name))
        found += inside
        unusable += [*misnamed, *((printable(f"{shard}/{name}").rstrip("/"), reason) for name, reason in read.faults if not _is_passed(name))]
    return Shards(tuple(found), tuple(unusable))


def _index(shard: AnyPath) -> tars.Index | OSError:
    try:
        return tars.index(shard)
    except StoreError:  # Of the store, not of this tar.
        raise
    except OSError as error:
        return error


def _is_passed(name: str) -> bool:
    """Whether a member that cannot be read is no loss: it is hidden, or has another suffix than audio and texts. "": the archive itself."""
    return bool(name) and (not name.lower().endswith((*AUDIO_SUFFIXES, *tars.TEXTS)) or is_hidden(name.replace("../", "")))


def _program(name: str) -> str:
    return next(f"{program} {name}" for suffix, program in _PROGRAMS.items() if name.lower().endswith(suffix))
