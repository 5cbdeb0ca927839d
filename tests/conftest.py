"""Shape annotations of the package are enforced in the tests, and only there."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

from jaxtyping import install_import_hook  # noqa: E402

install_import_hook("musiclm_jax", "beartype.beartype")
