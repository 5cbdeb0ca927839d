"""Reads text files of any encoding that people have."""

from __future__ import annotations

import codecs

from musiclm_jax.errors import UserError
from musiclm_jax.files import AnyPath, is_dir
from musiclm_jax.tars import is_file, read_bytes

# Byte order marks. UTF-32 comes before UTF-16, because its little-endian mark begins with that of UTF-16.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def read_text(path: AnyPath) -> tuple[str, bool]:
    """Reads a text in UTF-8, in UTF-16 or UTF-32 with a byte order mark, or else in Windows-1252.

    Returns:
        (the text without a byte order mark, whether it was read as Windows-1252).

    Raises:
        UserError: the file cannot be read, or is in none of these encodings.
    """
    if not is_file(path):
        raise UserError(f"{path} is not a file, expected a text file: {'move that folder away' if is_dir(path) else 'create it'}")
    try:
        data = read_bytes(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error}): change its permissions, or move it away") from None
    encoding = next((encoding for mark, encoding in _MARKS if data.startswith(mark)), None)
    for each in [encoding] if encoding else ["utf-8", "cp1252"]:
        try:
            text = data.decode(each)
        except UnicodeDecodeError:
            continue
        if "\0" not in text:  # NUL characters occur in binary files and in UTF-16 without its mark.
            return text, each == "cp1252"
    raise UserError(f"{path} is not a text in UTF-8, nor in UTF-16 with a byte order mark, nor in Windows-1252: save it as UTF-8")
