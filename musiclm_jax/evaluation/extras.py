"""Imports of packages that only some users need, those of an extra such as `eval`, with an error that names the remedy if one is missing."""

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
    """Raises UserError if one of these packages is missing. Called before the work that needs them."""
    for name in names:
        extra(name)


def extra(name: str, *, of: str = "eval", what: str = "this evaluation") -> ModuleType:
    """Imports the module `name`, such as "sklearn.metrics", of a package in the extra `of`. what: needs it, for the error.

    Raises:
        UserError: its package is not installed.
    """
    if name.split(".")[0] == "librosa":
        _give_caches()
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise UserError(f"{what} needs the package {error.name}; install it with: pip install 'musiclm-jax[{of}]'") from None


@functools.cache
def _give_caches() -> None:
    """Sets a temporary cache folder in the environment if the user has none, for example without a home directory.

    When librosa is imported, pooch needs such a folder, and numba needs one for compiled functions. Both raise if there is none.
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
