"""Shape annotations of the package are enforced in the tests, and only there."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Tests compile much and compute little: without LLVM's expensive passes they take half the time.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true")

import jax  # noqa: E402
import pytest  # noqa: E402
from jaxtyping import install_import_hook  # noqa: E402

install_import_hook("musiclm_jax", "beartype.beartype")


@pytest.fixture(autouse=True, scope="module")
def compiled_programs_of_one_module():
    """Programs of earlier modules are not used again; without this, a worker keeps gigabytes of them."""
    yield
    jax.clear_caches()
