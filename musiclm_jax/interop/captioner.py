"""Captions of images, which are prompts then, by models of transformers that run in PyTorch on the CPU."""

from __future__ import annotations

import os
import struct
from typing import Any

from musiclm_jax.errors import UserError, unreadable
from musiclm_jax.evaluation.extras import extra
from musiclm_jax.files import AnyPath, as_path
from musiclm_jax.interop import hub

# BLIP (arXiv 2201.12086), 224M parameters.
MODEL = "Salesforce/blip-image-captioning-base"
# Captions have some 10 words.
_MAX_TOKENS = 40
_NEEDS = {"of": "image", "what": "the caption of an image"}


def caption_image(path: str | os.PathLike, *, model: str = MODEL) -> str:
    """Describes an image in a line of text, by the likeliest words. The same image and model give the same caption.

    Args:
        path: an image of any size in a format that Pillow reads, such as PNG or JPEG.
        model: a captioner of transformers that needs no instruction, such as a BLIP or a `VisionEncoderDecoder`: its folder, or its name on the hub.

    Raises:
        UserError: the extra `image` is not installed, the file is not there or not a whole image, the model is not there or cannot caption images, or it
            says nothing of this one.
    """
    image = read_image(as_path(path))
    remedy = "name the folder of a downloaded captioner such as BLIP, or describe the image in words yourself"
    parts = ("AutoImageProcessor", "AutoTokenizer", "AutoModelForImageTextToText")
    processor, tokenizer, captioner = (hub.load(kind, model, remedy=remedy, **_NEEDS) for kind in parts)
    pixels = processor(image, return_tensors="pt")["pixel_values"]
    ids = captioner.generate(pixel_values=pixels, max_new_tokens=_MAX_TOKENS, do_sample=False)
    caption = " ".join(tokenizer.decode(ids[0], skip_special_tokens=True).split())
    if not caption:
        raise UserError(f"{path}: {model} says nothing of this image; choose another, or describe it in words yourself")
    return caption


def read_image(path: AnyPath) -> Any:
    """The image in a file as Pillow's, upright and in RGB. Raises UserError if it cannot be read, or if Pillow is not installed."""
    pillow, ops = (extra(name, **_NEEDS) for name in ("PIL.Image", "PIL.ImageOps"))
    try:
        with path.open("rb") as file, pillow.open(file) as image:
            return ops.exif_transpose(image).convert("RGB")
    except OSError as error:
        if error.errno is not None or isinstance(error, FileNotFoundError):
            raise unreadable(path, error) from error
        raise _no_image(path, error) from error
    except (SyntaxError, ValueError, EOFError, struct.error, pillow.DecompressionBombError) as error:
        raise _no_image(path, error) from error


def _no_image(path: AnyPath, error: Exception) -> UserError:
    """Pillow's messages name the object that it reads, not the file."""
    reason = "no format that Pillow knows" if type(error).__name__ == "UnidentifiedImageError" else " ".join(str(error).split())[:200]
    return UserError(f"{path} is not a whole image ({reason}): give a PNG or JPEG file that opens in other programs")
