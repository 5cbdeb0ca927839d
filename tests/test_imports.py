"""The levels of the house: imports go down, never up; gin, TensorFlow and devices stay in their rooms."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import musiclm_jax

ROOT = Path(musiclm_jax.__file__).parent

# A room is a module or a folder of modules. A module may import from its own level and from those below.
LEVELS = [
    "arrays checks errors specs records buckets files tars folders progress partitioning",
    "audio nn",
    "models tokens bundle corpus",
    "data",
    "generation training tasks",
    "configs pretrained musiclm parts tokenizing evaluation interop",
    "cli",
]
LEVEL = {room: level for level, rooms in enumerate(LEVELS) for room in rooms.split()}
# Third-party packages that only some rooms may know.
ALLOWED_IN = {
    "gin": ("cli",),
    "absl": ("cli",),
    "tensorflow": ("data", "interop"),
    "tensorflow_datasets": ("data",),
    "apache_beam": ("data",),
    "grain": ("data",),
    "click": ("cli",),
    "optax": ("training", "tasks"),
    "orbax": ("training", "interop"),
    "etils": ("buckets", "interop"),
    "fsspec": ("buckets",),
    "t5x": ("interop",),
    "seqio": ("interop",),
    "clu": ("interop",),
}
MODULES = sorted(path for path in ROOT.rglob("*.py") if path.name != "__init__.py")
# They define classes of T5X, which CI cannot install, and of TFDS, which needs TensorFlow for them.
NEED_MORE = {ROOT / name for name in ("interop/t5x/data.py", "interop/t5x/model.py", "interop/t5x/seqio_tasks.py", "data/tfds_builders.py")}


def room(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports(path: Path, *, top_level: bool = False) -> set[str]:
    """Dotted names that a file imports; with `top_level` only those that importing it runs."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = set()
    nodes = tree.body if top_level else ast.walk(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_every_room_has_a_level():
    assert {room(path) for path in MODULES} <= LEVEL.keys()


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_imports_go_down(path):
    for imported in imports(path):
        if imported.startswith("musiclm_jax."):
            other = imported.split(".")[1]
            if other in LEVEL:  # Otherwise a name of the package itself, such as __version__.
                assert LEVEL[other] <= LEVEL[room(path)], f"{name(path)} (level {LEVEL[room(path)]}) imports {imported} (level {LEVEL[other]})"


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_packages_stay_in_their_rooms(path):
    for imported in imports(path):
        rooms = ALLOWED_IN.get(imported.split(".")[0])
        assert rooms is None or room(path) in rooms, f"{name(path)} imports {imported}, which belongs in {', '.join(rooms)}"


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_slow_packages_are_imported_where_they_are_used(path):
    slow = {"librosa", "tensorflow", "apache_beam", "grain", "pyloudnorm", "sklearn"} | ({"tensorflow_datasets"} if path not in NEED_MORE else set())
    assert not slow & {imported.split(".")[0] for imported in imports(path, top_level=True)}


PROGRAM = """
import importlib, json, sys, time
begin = time.process_time()
import musiclm_jax
seconds = time.process_time() - begin
light = sorted({name.split(".")[0] for name in sys.modules} & {"jax", "flax", "numpy"})
for module in sys.argv[1:]:
    importlib.import_module(module)
from jax._src import xla_bridge
print(json.dumps({"seconds": seconds, "loaded": light, "devices": bool(xla_bridge._backends)}))
"""


def test_importing_touches_no_device_and_the_package_itself_is_instant():
    modules = [".".join(("musiclm_jax", *path.relative_to(ROOT).with_suffix("").parts)) for path in MODULES if path not in NEED_MORE]
    env = {**os.environ, "PYTHONPATH": str(ROOT.parent)}
    done = subprocess.run([sys.executable, "-c", PROGRAM, *modules], capture_output=True, text=True, timeout=300, env=env)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["seconds"] < 0.3 and found["loaded"] == [] and not found["devices"]
