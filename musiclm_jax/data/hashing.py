"""Hashes of the contents of files, by which clips are known."""

from __future__ import annotations

import functools
import hashlib
import json
import time
from collections.abc import Sequence

from musiclm_jax.buckets import StoreError
from musiclm_jax.data.prefetch import map_ahead
from musiclm_jax.files import AnyPath, fingerprint, is_bucket, list_objects, write_text
from musiclm_jax.progress import OnProgress
from musiclm_jax.tars import holder, open_file

_SAVE_HASHES_SEC = 30.0


def hash_files(folder: AnyPath, names: Sequence[str], *, cache: AnyPath | None, on_progress: OnProgress | None) -> tuple[dict[str, str], list[tuple[str, str]]]:
    """Returns ({name: SHA-256 of the file's bytes}, (name, reason) of files that cannot be read).

    cache: a JSON file that stores hashes by name, size and time of change, so that only new and changed files are read again. A file in a tar has the size
        and the time of the tar. None: no such file.
    """
    old, listing = _read_cache(cache), list_objects(folder) if is_bucket(folder) else {}
    stats, known, unread, version = {}, {}, [], functools.cache(fingerprint)

    def read(name: str) -> str | OSError:
        try:
            with open_file(folder / name) as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except StoreError:  # Of the store, not of this file.
            raise
        except OSError as error:
            return error

    for name in names:
        try:
            found = listing.get(name) or version(holder(folder / name))
        except OSError as error:
            unread.append((name, _unreadable(error)))
            continue
        stats[name] = list(found)  # Taken before the file is read, so that a file that changes meanwhile is read again next time.
        if name in old and old[name][:2] == stats[name]:
            known[name] = old[name][2]
    wanted = [name for name in stats if name not in known]
    save = lambda: write_text(cache, json.dumps({"files": {name: [*stats[name], known[name]] for name in stats if name in known}}) + "\n")  # noqa: E731
    saved = time.monotonic()
    for done, (name, found) in enumerate(map_ahead(read, wanted), start=1):
        if isinstance(found, OSError):
            unread.append((name, _unreadable(found)))
        else:
            known[name] = found
        if on_progress:
            on_progress("reading", done, len(wanted))
        if cache and time.monotonic() - saved > _SAVE_HASHES_SEC:
            save()
            saved = time.monotonic()
    if cache and (wanted or old.keys() != known.keys()):
        save()
    return {name: known[name] for name in names if name in known}, unread


def _unreadable(error: OSError) -> str:
    return f"cannot be read ({error.strerror or error}); change its permissions, or remove it"


def _read_cache(path: AnyPath | None) -> dict[str, list]:
    """{name: [*`fingerprint`, sha256]}. Empty if the file is missing or damaged; all files are hashed again then."""
    try:
        files = json.loads(path.read_bytes())["files"] if path else {}
        return {name: [int(size), int(version), str(sha256)] for name, (size, version, sha256) in files.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
