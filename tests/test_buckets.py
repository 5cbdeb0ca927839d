"""Paths on object stores: the same files, bundles, trainings and errors as on the local disk."""

import importlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import fsspec
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile
from etils.epath.backend import fsspec_backend
from fake_gcs import STORE, FakeFileSystem, serving
from tiny_musiclm import tiny_musiclm
from tiny_parts import tiny_parts, write_clips, write_metadata
from tiny_task import source, tiny

from musiclm_jax import audio, buckets, bundle, files, folders
from musiclm_jax.cli.main import main
from musiclm_jax.corpus import make_corpus
from musiclm_jax.data.clips import load_array, prepare
from musiclm_jax.data.folder import read_folder
from musiclm_jax.errors import UserError
from musiclm_jax.files import as_path
from musiclm_jax.musiclm import MusicLM
from musiclm_jax.parts.fit import fit, plan
from musiclm_jax.parts.part import FitConfig
from musiclm_jax.parts.shards import clear, in_shards, save_joined
from musiclm_jax.training.checkpoints import Checkpoints, latest_lengths
from musiclm_jax.training.loop import TrainConfig, train

# What metrics say of the machine.
TIMES = ("steps_per_sec", "examples_per_sec", "tokens_per_sec", "sec_left")


class Killed(BaseException):
    """What a kill is to the code of this process: nothing catches it."""


def use(cache: Path, monkeypatch, *, fake: bool) -> None:
    STORE.reset()
    monkeypatch.setattr(buckets, "cache_folder", lambda: cache)
    cache.mkdir()
    registry = importlib.import_module("fsspec.registry")
    fsspec_backend._get_filesystem.cache_clear()  # epath's clients, of the test before.
    for name in FakeFileSystem.protocol:
        monkeypatch.delitem(registry._registry, name, raising=False)
        if fake:
            monkeypatch.setitem(registry._registry, name, FakeFileSystem)


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """A path on an object store in memory."""
    use(tmp_path / "cache", monkeypatch, fake=True)
    return as_path("gs://bucket/run")


@pytest.fixture(params=["gs", "s3", "gcsfs"])
def any_bucket(request, tmp_path, monkeypatch):
    """As `bucket`, also as s3://, and through gcsfs where it is installed."""
    if request.param == "gcsfs":
        pytest.importorskip("gcsfs", reason="the extra gcs is not installed")
    use(tmp_path / "cache", monkeypatch, fake=request.param != "gcsfs")
    with serving() as url:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", url)
        yield as_path("s3://bucket/run" if request.param == "s3" else "gs://bucket/run")


def upload(folder: Path, to: str) -> str:
    for path in folder.rglob("*"):
        if path.is_file():
            STORE.write(f"{to}/{path.relative_to(folder).as_posix()}", path.read_bytes())
    return f"gs://{to}"


def logged(verb: str, *, since: int = 0) -> list[str]:
    return [entry.partition(" ")[2] for entry in STORE.log[since:] if entry.startswith(f"{verb} ")]


# ------------------------------------------------------------------------------------------------- paths


def test_a_text_with_a_scheme_is_an_epath_and_any_other_one_a_local_path(bucket, monkeypatch):
    assert type(as_path("a/b")) is type(Path("a/b")) and as_path("a/b") == Path("a/b")
    for text in ("gs://bucket/run", Path("gs://bucket/run"), bucket):  # pathlib makes one slash of two.
        assert str(as_path(text)) == "gs://bucket/run" and not isinstance(as_path(text), Path)
    for text, words in {"ftp://a/b": "ftp:// is not supported", "gs://": "gs://BUCKET/FOLDER", "s3:///": "no bucket"}.items():
        with pytest.raises(UserError, match=words):
            as_path(text)
    with pytest.raises(UserError, match="is on an object store"):
        files.local_path("gs://bucket/run")

    def missing(name):
        raise ImportError("Please install gcsfs")

    monkeypatch.setattr(fsspec, "get_filesystem_class", missing)
    with pytest.raises(UserError, match=r"pip install 'musiclm-jax\[gcs\]'"):
        as_path("gs://bucket/run")


def test_local_paths_import_no_client(tmp_path):
    program = "import sys; from musiclm_jax import files; files.write_text(sys.argv[1], 'a'); files.sha256_file(sys.argv[1]); print(*sys.modules)"
    env = {**os.environ, "PYTHONPATH": str(Path(files.__file__).parents[1])}
    loaded = subprocess.run([sys.executable, "-c", program, tmp_path / "a"], env=env, capture_output=True, text=True, check=True).stdout
    assert not {"etils", "fsspec"} & {name.split(".")[0] for name in loaded.split()}


# ------------------------------------------------------------------------------------------------- files


def test_files_are_written_read_moved_and_deleted(any_bucket):
    root = any_bucket
    assert not files.exists(root) and files.list_files(root) == []
    files.write_json(root / "a.json", {"a": 1})
    assert files.read_json(root / "a.json") == {"a": 1} and files.fingerprint(root / "a.json")[0] == 12
    for line in ("1", "2"):
        files.append_line(root / "b" / "log", line)
    assert STORE.folder("gs://bucket/run") == {"a.json": b'{\n "a": 1\n}\n', "b/log": b"1\n2\n"}
    assert files.is_dir(root / "b") and not files.is_file(root / "b") and files.is_file(root / "b" / "log") and not files.exists(root / "c")
    folders.move(root / "b", root / "c", last="log")
    assert folders.move_aside(root / "a.json", root / "c" / "log") == root / "c" / "log-2"
    assert files.list_files(root) == ["c/log", "c/log-2"] and not files.exists(root / "b")
    files.check_writable(root / "d")
    folders.remove_folder(root / "c")
    files.remove(root / "none")
    assert STORE.folder("gs://bucket/run") == {}
    with pytest.raises(UserError, match="a.json cannot be read, no such file"):
        files.read_json(root / "a.json")


def test_an_object_is_written_whole_or_not_at_all(any_bucket):
    path, data = any_bucket / "a.bin", os.urandom(6_000_000)  # More than gcsfs sends at once.
    with files.atomic_path(path) as temporary:
        temporary.write_bytes(data)
    with pytest.raises(Killed), files.atomic_path(path) as temporary:
        temporary.write_bytes(data[:100])
        raise Killed
    assert STORE.folder("gs://bucket/run") == {"a.bin": data} and files.sha256_file(path) == files.sha256_file(files.local_copy(path))
    assert not logged("read")  # What was written here need not be read from there.


def test_a_local_copy_is_of_the_present_version(any_bucket, tmp_path):
    path = any_bucket / "a.npy"
    for number in (1, 2):  # The same size.
        STORE.write("bucket/run/a.npy", b"%d" % number)
        assert files.local_copy(path).read_bytes() == files.local_copy(path).read_bytes() == b"%d" % number
        assert [each.read_bytes() for each in (tmp_path / "cache").iterdir()] == [b"%d" % number]
    assert len(logged("read")) == 2
    files.remove(path)
    assert not list((tmp_path / "cache").iterdir())


def test_a_truncated_download_is_an_error(bucket, monkeypatch, tmp_path):
    STORE.write("bucket/run/a.npy", b"1234")
    monkeypatch.setattr(FakeFileSystem, "get_file", lambda self, remote, local: Path(local).write_bytes(b"12"))
    with pytest.raises(buckets.StoreError, match="2 of 4 bytes"):
        files.local_copy(bucket / "a.npy")
    assert not list((tmp_path / "cache").iterdir())


def test_a_bucket_that_is_missing_or_forbidden_is_one_line_before_anything_is_computed(any_bucket, tmp_path, capsys):
    data, config = write_clips(tmp_path / "data", number=2), FitConfig(parts=tiny_parts([]))
    text = str(any_bucket)
    with pytest.raises(UserError, match="there is no bucket none"):
        fit(data, config=config, workdir=text.replace("bucket", "none"))
    STORE.forbidden.add("bucket")
    with pytest.raises(UserError, match="music@example.com does not have .* access.: give this account the right"):
        fit(data, config=config, workdir=text)
    with pytest.raises(UserError, match="music@example.com"):
        read_folder(text)
    assert not STORE.log
    with pytest.raises(SystemExit):
        main(["info", text])
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "the store refused" in error and "music@example.com" in error


# ------------------------------------------------------------------------------------------------- data


@pytest.mark.parametrize("sidecars", [False, True])
def test_a_folder_of_clips_is_what_it_is_on_the_disk(bucket, tmp_path, sidecars):
    data = write_clips(tmp_path / "data", number=4, **({} if sidecars else {"melody": "a"}))
    (data / "below").mkdir()
    (data / "0.wav").rename(data / "below" / "0.wav")
    if sidecars:
        (data / "metadata.jsonl").unlink()
        (data / "1.txt").write_text("a tone")
    else:
        write_metadata(data, [{"file_name": f"{'below/' if i == 0 else ''}{i}.wav", "caption": "a tone"} for i in (0, 1, 2, 7)])
    for junk in (".hidden/a.wav", "__MACOSX/a.wav", "run/codec/step.json", "run/codec/a.wav", "run/superseded/a.wav"):
        (data / junk).parent.mkdir(parents=True, exist_ok=True)
        (data / junk).write_text("x")
    local, there = read_folder(data), read_folder(upload(data, "bucket/data"), hashes=bucket / "hashes.json")
    assert there.entries == local.entries and there.unusable == local.unusable and len(local.entries) == (4 if sidecars else 3)
    # A file is read again when it has changed, and no other one.
    STORE.write("bucket/data/1.wav", (data / "2.wav").read_bytes())
    began = len(STORE.log)
    again = read_folder("gs://bucket/data", hashes=bucket / "hashes.json")
    assert [name for name in logged("read", since=began) if name.endswith(".wav")] == ["bucket/data/1.wav"]
    assert [a.file_name for a, b in zip(again.entries, local.entries, strict=True) if a.sha256 != b.sha256] == ["1.wav"]


def test_clips_of_a_bucket_are_decoded_to_a_bucket(bucket, tmp_path):
    data = write_clips(tmp_path / "data", number=3)
    local = prepare(read_folder(data), tmp_path / "store", sample_rate_hz=24_000)
    there = prepare(read_folder(upload(data, "bucket/data")), bucket, sample_rate_hz=24_000)
    assert there.clips == local.clips and isinstance(there.samples, np.memmap)
    np.testing.assert_array_equal(there.samples, local.samples)
    assert STORE.folder("gs://bucket/run") == {path.name: path.read_bytes() for path in sorted((tmp_path / "store").iterdir())}


def test_a_store_that_does_not_answer_skips_no_clip(bucket, tmp_path):
    there = read_folder(upload(write_clips(tmp_path / "data", number=12), "bucket/data"))

    def refuse(entry):
        if entry == "read bucket/data/7.wav":
            raise RuntimeError("503 try again")

    STORE.before = refuse
    with pytest.raises(UserError, match=r"7.wav: the store refused or did not answer \(503 try again\)"):
        prepare(there, bucket, sample_rate_hz=24_000)
    with pytest.raises(buckets.StoreError, match="503"):
        read_folder("gs://bucket/data")
    STORE.before = lambda entry: None
    assert len(prepare(there, bucket, sample_rate_hz=24_000).clips) == 12


def test_music_goes_to_a_bucket_and_a_corpus_does_not(bucket):
    audio.write_wav(bucket / "a.wav", np.linspace(-1, 1, 24_000, dtype=np.float32))
    wave, rate = soundfile.read(io.BytesIO(STORE.folder("gs://bucket/run")["a.wav"]))
    assert rate == 24_000 and len(wave) == 24_000
    np.testing.assert_array_equal(audio.read(bucket / "a.wav"), wave.astype(np.float32))
    with pytest.raises(UserError, match="is on an object store"):
        make_corpus(bucket, num_clips=1, seed=0)


# ------------------------------------------------------------------------------------------------- bundles


def test_a_bundle_is_saved_and_opened(any_bucket, tmp_path):
    model = tiny_musiclm()
    model.save_pretrained(any_bucket)
    model.save_pretrained(tmp_path / "local")
    assert STORE.folder("gs://bucket/run") == {path.name: path.read_bytes() for path in sorted((tmp_path / "local").iterdir())}
    opened = MusicLM.from_pretrained(str(any_bucket))
    assert opened.config == model.config and bundle.read_card(any_bucket) == bundle.read_card(tmp_path / "local")
    for name in model.models:
        jax.tree.map(np.testing.assert_array_equal, opened.variables(name), model.variables(name))


def test_a_bundle_that_was_not_replaced_as_a_whole_is_none_and_is_replaced_again(bucket):
    save = lambda card: bundle.save(bucket, config={}, models={"a": {"x": np.zeros(3)}, "b": {"x": np.ones(2)}}, card=card)  # noqa: E731
    save("old")
    STORE.write("bucket/run/c.safetensors", b"")
    opened, at = 0, -1

    def kill(entry):
        nonlocal at
        at -= 0 if entry.startswith(("look", "list", "read")) else 1
        if at == 0:
            raise Killed

    for number in range(1, 20):
        before, at, STORE.before = number, number, kill
        try:
            save("new")
        except Killed:
            STORE.before = lambda entry: None
            try:
                assert bundle.open_bundle(bucket).files and bundle.read_card(bucket) in ("old", "new")
                bundle.open_bundle(bucket).load("a")
                opened += 1
            except UserError as error:
                assert "not a bundle" in str(error)
        else:
            break
    STORE.before = lambda entry: None
    assert before > 6 and opened < before - 2
    assert sorted(STORE.folder("gs://bucket/run")) == ["README.md", "a.safetensors", "b.safetensors", "config.json"]
    STORE.write("bucket/run/mine.txt", b"")
    with pytest.raises(UserError, match="mine.txt"):
        save("newer")


# ------------------------------------------------------------------------------------------------- work folders


def outcome(data, workdir, **changes) -> tuple[list[str], list[str]]:
    """(the steps that ran, the actions planned before)."""
    log, steps = [], ("a", "b", "export")
    config = FitConfig(parts=tiny_parts(log, **changes))
    actions = [f"{each.step.name}: {each.action}" for each in plan(data, config=config, workdir=workdir)]
    fit(data, config=config, workdir=workdir)
    assert set(log) <= set(steps)
    return log, actions


def test_a_work_folder_on_a_bucket_is_that_of_the_disk(any_bucket, tmp_path):
    data = write_clips(tmp_path / "data", number=3)
    where = str(any_bucket)
    for changes in ({}, {}, {"b": {"text": "y"}}, {"b": {"text": "x"}}, {"a": {"num_steps": 6}}):
        assert outcome(data, where, **changes) == outcome(data, tmp_path / "local", **changes)
    same = lambda name: not name.startswith(".locks") and not name.endswith((".json", ".log", "WHY.txt"))  # noqa: E731
    local = {name: (tmp_path / "local" / name).read_bytes() for name in files.list_files(tmp_path / "local") if same(name)}
    assert {name: found for name, found in STORE.folder("gs://bucket/run").items() if same(name)} == local and len(local) == 8
    # A damaged output is set aside and made again.
    STORE.write("bucket/run/b/out", b"zz")
    assert outcome(data, where, a={"num_steps": 6})[0] == ["b"] and STORE.folder("gs://bucket/run")["b/damaged/out"] == b"zz"


def test_nothing_is_lost_when_a_move_is_killed(bucket, tmp_path):
    data = write_clips(tmp_path / "data", number=2)
    outcome(data, bucket)
    first, at = STORE.folder("gs://bucket/run")["b/out"], 0

    def kill(entry):
        nonlocal at
        if "bucket/run/superseded/b-" in entry or entry.startswith("delete bucket/run/b/"):
            at -= 0 if entry.startswith(("look", "list", "read")) else 1
            if at == 0:
                raise Killed

    for number in range(1, 12):
        at, STORE.before = number, kill
        try:
            outcome(data, bucket, b={"text": "y"})
        except Killed:
            assert first in [found for name, found in STORE.folder("gs://bucket/run").items() if name.endswith("out")]
        else:
            break
    STORE.before = lambda entry: None
    assert number > 4
    assert outcome(data, bucket)[0] == [] and STORE.folder("gs://bucket/run")["b/out"] == first  # The first one is back.


# ------------------------------------------------------------------------------------------------- trainings


@pytest.fixture
def tensorstore_bucket(bucket, monkeypatch):
    """As `bucket`, and Orbax writes there by TensorStore's own client."""
    with serving() as url:
        monkeypatch.setenv("TENSORSTORE_GCS_HTTP_URL", url)
        yield bucket


def test_checkpoints_are_complete_or_none(tensorstore_bucket):
    states = {step: {"x": jnp.arange(5.0) + step} for step in (1, 2, 3)}
    abstract = {"x": jax.ShapeDtypeStruct((5,), jnp.float32, sharding=jnp.zeros(5).sharding)}
    folder, killed_at = "bucket/run/checkpoints", ""

    def kill(entry):
        if killed_at and entry.startswith(killed_at):
            raise Killed

    def run(*steps):
        with Checkpoints(tensorstore_bucket, identity="a", keep=1) as checkpoints:
            found = checkpoints.restore(abstract, num_steps=9)
            for step in steps:
                checkpoints.save(step, states[step], [[0, 9]])
            return found and (int(found[0]["x"][0]), found[1], latest_lengths(tensorstore_bucket))

    assert run(1) is None
    # Killed before the record is written; then while the checkpoint before it is deleted.
    STORE.before = kill
    for number, killed_at in enumerate((f"write {folder}/2/checkpoint.json", f"delete {folder}/1/state")):  # noqa: B007
        with pytest.raises(Killed):
            run(2)
        killed_at = ""
        assert f"{folder}/{number + 1}/state/_METADATA" in STORE.objects
        assert run() == (number + 1, [[0, 9]], (number + 1, [[0, 9]]))
        assert {name.split("/")[3] for name in STORE.objects} == {str(number + 1)}  # What was not complete is gone.
    # A damaged one is set aside.
    run(3)
    name = next(name for name in STORE.objects if f"{folder}/3/state/d/" in name)
    STORE.write(name, STORE.read(name)[:-1] + b"?")
    with pytest.raises(UserError, match="are damaged"):
        run()
    assert name in STORE.objects


def test_a_training_on_a_bucket_is_that_of_the_disk(tensorstore_bucket, tmp_path):
    found = []
    for workdir in (tensorstore_bucket, tmp_path / "local"):
        for num_steps in (3, 5):  # The second one continues.
            config = TrainConfig(log_every=1, save_every=2, eval_every=2, eval_batches=1)
            trained = train(tiny(num_steps), source, workdir=workdir, config=config, identity="a", eval_source=source)
        lines = [{**json.loads(line), **dict.fromkeys(TIMES)} for line in (workdir / "metrics.jsonl").read_bytes().splitlines()]
        found.append((jax.tree.leaves(trained.state), trained.lengths, lines))
    (there, *rest), (local, *local_rest) = found
    assert rest == local_rest and len(rest[1]) > 6
    for a, b in zip(there, local, strict=True):
        np.testing.assert_array_equal(a, b)


def test_shards_survive_a_kill_and_leave_nothing(bucket, tmp_path):
    def run(*, kill_at: int = -1) -> tuple[list[np.ndarray], list[int]]:
        made = []

        def make(some):
            if some[0] == kill_at:
                raise Killed
            made.append(some[0])
            return np.array(some)

        return in_shards(bucket / "shards", range(5), make, shard_items=2, what="numbers", unit="items"), made

    with pytest.raises(Killed):
        run(kill_at=2)
    shards, made = run()
    assert made == [2, 4]
    save_joined(bucket / "all.npy", shards)
    clear(bucket / "shards")
    assert list(STORE.folder("gs://bucket/run")) == ["all.npy"] and load_array(bucket / "all.npy").tolist() == [0, 1, 2, 3, 4]
    assert len(list((tmp_path / "cache").iterdir())) == 1
