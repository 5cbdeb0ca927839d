"""Models of transformers, from a folder or by their name on the hub, from where transformers downloads them. None of their code is executed."""

from __future__ import annotations

import logging
from typing import Any

from safetensors import SafetensorError

from musiclm_jax.errors import UserError
from musiclm_jax.evaluation.extras import extra


def load(kind: str, source: str, *, of: str, remedy: str, what: str = "this evaluation", **options: Any) -> Any:
    """transformers.KIND.from_pretrained(source); a model is ready for inference.

    Args:
        kind: name of a class of transformers: of a model, a config, a tokenizer or of features.
        source: a folder, or a name on the hub.
        of: the extra of this package that brings transformers.
        remedy, what: the end of the message where it cannot be loaded, and the beginning of that where a package is missing.
        options: of `from_pretrained`.

    Raises:
        UserError: transformers is not installed, or the source is not there, is another model's, or lacks weights.
    """
    extra("torch", of=of, what=what)  # Without it transformers has names for its models, and nothing behind them.
    cls = getattr(extra("transformers", of=of, what=what), kind)
    is_model = kind.startswith("AutoModel") or hasattr(cls, "get_input_embeddings")
    logging.disable(logging.WARNING)  # The hub's retries, and that MERT's config is of another type.
    try:
        loaded = cls.from_pretrained(source, **options, **({"output_loading_info": True} if is_model else {}))
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{source}: cannot be loaded as {kind} ({reason}); {remedy}") from error
    finally:
        logging.disable(logging.NOTSET)
    if not is_model:
        return loaded
    model, info = loaded
    if missing := info["missing_keys"]:
        raise UserError(f"{source}: lacks {len(missing)} of the weights of {kind}, such as {min(missing)}; choose weights of that model")
    return model.eval()
