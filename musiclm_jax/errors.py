"""The exception for errors that a user can correct, and its messages for files that cannot be read or written."""

from __future__ import annotations

import errno
import os


class UserError(Exception):
    """An error that a user can correct. Its message is one line with the wrong value or file, and the remedy.

    The command line prints the message without a traceback and exits with status 2.
    """


_WRITE_REMEDIES = {
    errno.ENOSPC: "the disk is full: free some space and run the same command again",
    errno.EDQUOT: "the disk quota is used up: free some space and run the same command again",
    errno.EACCES: "permission denied: change the permissions of its folder, or write elsewhere",
    errno.EPERM: "permission denied: change the permissions of its folder, or write elsewhere",
    errno.EROFS: "the file system is read-only: write elsewhere",
    errno.EEXIST: "something in this path is a file and no folder: choose another path",
    errno.ENOTDIR: "something in this path is a file and no folder: choose another path",
    errno.ENAMETOOLONG: "the name is too long: choose a shorter one",
}


def unwritable(path: str | os.PathLike, error: OSError) -> UserError:
    """The UserError for an `error` in writing `path`."""
    number = errno.ENOSPC if "requested and" in str(error) else error.errno  # NumPy's message when a part of an array was not written.
    return UserError(f"{path} cannot be written, {_WRITE_REMEDIES.get(number, f'{error.strerror or error}: check the path, or write elsewhere')}")


def unreadable(path: str | os.PathLike, error: OSError) -> UserError:
    """The UserError for an `error` in reading `path`."""
    reason = error.strerror or ("no such file" if isinstance(error, FileNotFoundError) else " ".join(str(error).split()))  # Object stores give no number.
    return UserError(f"{path} cannot be read, {reason}: check the path and its permissions")
