"""Shape annotations of the package are enforced in the tests, and only there. Object stores in memory."""

import importlib
import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Tests compile much and compute little: without LLVM's expensive passes they take half the time.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true")

# As `buckets.open_path` does, which comes too late where TFDS was imported before.
os.environ.setdefault("EPATH_USE_TF", "false")

import jax  # noqa: E402
import pytest  # noqa: E402
from jaxtyping import install_import_hook  # noqa: E402

install_import_hook("musiclm_jax", "beartype.beartype")


@pytest.fixture(autouse=True, scope="module")
def compiled_programs_of_one_module():
    """Programs of earlier modules are not used again; without this, a worker keeps gigabytes of them."""
    yield
    jax.clear_caches()


# ---------------------------------------------------------------------------------------------------------------------- Object stores


def _in_memory(tmp_path, monkeypatch, *, scheme: str = "gs", client: type | None = None):
    """A path on the store of fake_gcs.py. client: of fsspec; None: gcsfs."""
    from etils.epath.backend import fsspec_backend

    from musiclm_jax import buckets, files

    (tmp_path / "cache").mkdir()
    monkeypatch.setattr(buckets, "cache_folder", lambda: tmp_path / "cache")
    fsspec_backend._get_filesystem.cache_clear()  # epath's clients, of the test before.
    known = importlib.import_module("fsspec.registry")._registry
    for name in ("gs", "gcs", "s3"):
        monkeypatch.delitem(known, name, raising=False)
        if client:
            monkeypatch.setitem(known, name, client)
    return files.as_path(f"{scheme}://bucket/run")


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """A path on an object store in memory, to which Orbax writes by TensorStore's own client."""
    from fake_gcs import FakeFileSystem, serving

    with serving() as url:
        monkeypatch.setenv("TENSORSTORE_GCS_HTTP_URL", url)
        yield _in_memory(tmp_path, monkeypatch, client=FakeFileSystem)


@pytest.fixture(params=["gs", "s3", "gcsfs"])
def any_bucket(request, tmp_path, monkeypatch):
    """As `bucket`, also as s3://, and through gcsfs where it is installed."""
    from fake_gcs import FakeFileSystem, serving

    if request.param == "gcsfs":
        monkeypatch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")  # It asks Google for the kind of the bucket.
        pytest.importorskip("gcsfs", reason="the extra gcs is not installed")
    with serving() as url:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", url)
        client = None if request.param == "gcsfs" else FakeFileSystem
        yield _in_memory(tmp_path, monkeypatch, scheme="s3" if request.param == "s3" else "gs", client=client)
