"""Checks that a fit on an object store gives what it gives on the disk: `python checks/bucket_fit.py`.

Runs a fit of `--size test` on five clips twice: in a folder of the disk, and with clips and work folder on the store in memory of `tests/fake_gcs.py`, where
Orbax writes through TensorStore's client of Google Cloud Storage, and all else through fsspec: by gcsfs where it is installed, or else by a stand-in. Then
all outputs of all steps must have the same bytes. The exit status is 1 if they differ.
"""

import os
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import fsspec
from fake_gcs import STORE, FakeFileSystem, serving
from tiny_parts import write_clips

# Files that contain times or random names.
TIMED = ("metrics.jsonl", "done.json", "step.json", "hashes.json", "checkpoints", ".locks")


def main() -> None:
    folder = Path(tempfile.mkdtemp(prefix="bucket_fit-"))
    os.environ |= {"MUSICLM_CACHE_DIR": str(folder / "cache"), "JAX_PLATFORMS": "cpu", "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false"}
    os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true")
    try:
        client = fsspec.get_filesystem_class("gs")
    except ImportError:
        client = FakeFileSystem
        for name in client.protocol:
            fsspec.register_implementation(name, client, clobber=True)
    data = write_clips(folder / "data", number=5)
    with serving() as url:
        for path in data.iterdir():
            STORE.write(f"bucket/data/{path.name}", path.read_bytes())
        os.environ |= {"TENSORSTORE_GCS_HTTP_URL": url, "STORAGE_EMULATOR_HOST": url}
        from musiclm_jax.cli.gin_config import load_config
        from musiclm_jax.cli.options import use_compilation_cache
        from musiclm_jax.parts.fit import fit

        use_compilation_cache()
        for where, workdir in ((data, folder / "run"), ("gs://bucket/data", "gs://bucket/run")):
            fit(where, config=load_config("test"), workdir=workdir)
    same = lambda name: not {*Path(name).parts} & {*TIMED}  # noqa: E731
    local = {str(path.relative_to(folder / "run")): path.read_bytes() for path in (folder / "run").rglob("*") if path.is_file()}
    there = STORE.folder("gs://bucket/run")
    differ = sorted(name for name in local.keys() | there.keys() if same(name) and local.get(name) != there.get(name))
    copies = sum(path.stat().st_size for path in (folder / "cache" / "buckets").iterdir() if path.is_file())
    print(f"{client.__module__}: {sum(map(same, local))} files on the disk, {sum(map(same, there))} on the bucket, {len(differ)} differ: {differ}")
    print(f"local copies: {copies / 1e6:.2f} MB; work folder: {sum(map(len, there.values())) / 1e6:.2f} MB")
    sys.exit(1 if differ else 0)


if __name__ == "__main__":
    main()
