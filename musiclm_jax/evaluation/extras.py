"""Packages that only evaluations need, the extra `eval`: imported where they are used, and where they are missing an error says how to get them."""

from __future__ import annotations

import atexit
import functools
import importlib
import os
import shutil
import tempfile
from types import ModuleType

from musiclm_jax.errors import UserError


def require(*names: str) -> None:
    """Raises UserError where one of these packages is missing, before the work begins that would need it."""
    for name in names:
        extra(name)


def extra(name: str) -> ModuleType:
    """The module `name`, such as "sklearn.metrics".

    Raises:
        UserError: its package is not installed.
    """
    if name.split(".")[0] == "librosa":
        _give_caches()
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise UserError(f"this evaluation needs the package {error.name}; install it with: pip install 'musiclm-jax[eval]'") from None


@functools.cache
def _give_caches() -> None:
    """Where the user has no cache folder, such as a user without a home directory, sets a temporary one in the environment.

    librosa asks pooch for a folder when it is imported, and numba for one where its compiled functions are kept: both raise where there is none.
    """
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    usable = os.path.isabs(base)  # Without a home directory "~" stays "~".
    if usable:
        try:
            os.makedirs(base, exist_ok=True)
            usable = os.access(base, os.W_OK)
        except OSError:
            usable = False
    if not usable:
        folder = tempfile.mkdtemp(prefix="musiclm_jax-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        os.environ.setdefault("NUMBA_CACHE_DIR", folder)
        os.environ["XDG_CACHE_HOME"] = folder
