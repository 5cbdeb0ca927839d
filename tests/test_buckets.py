"""Paths on object stores: files, clips and bundles are what they are on the disk, and errors are one line."""

import errno
import io
import os
import subprocess
import sys
from pathlib import Path

import fsspec
import jax
import numpy as np
import pytest
import soundfile
from fake_gcs import STORE, FakeFileSystem, Killed
from tiny_musiclm import tiny_musiclm
from tiny_parts import tiny_parts, write_clips, write_metadata

from musiclm_jax import audio, buckets, bundle, files, folders
from musiclm_jax.cli.main import main
from musiclm_jax.corpus import make_corpus
from musiclm_jax.data.clips import load_array, prepare
from musiclm_jax.data.folder import read_folder
from musiclm_jax.errors import UserError
from musiclm_jax.files import as_path
from musiclm_jax.musiclm import MusicLM
from musiclm_jax.parts.fit import fit
from musiclm_jax.parts.part import FitConfig


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
    folders.move(root / "b", root / "c", first="log")
    assert folders.move_aside(root / "a.json", root / "c" / "log") == root / "c" / "log-2"
    assert files.list_files(root) == ["c/log", "c/log-2"] and not files.exists(root / "b")
    files.check_writable(root / "d")
    folders.remove_folder(root / "c")
    files.remove(root / "none")
    assert STORE.folder("gs://bucket/run") == {}
    with pytest.raises(UserError, match="a.json cannot be read, no such file"):
        files.read_json(root / "a.json")


def test_what_is_left_by_a_killed_move_has_its_first_file(bucket):
    whole = {name: name.encode() for name in ("a", "step.json", "z/b")}
    for kill_at in range(6):  # Three writes and three deletions.
        STORE.objects.clear()
        for name, data in whole.items():
            STORE.write(f"bucket/run/from/{name}", data)
        began = sum(entry.startswith(("write ", "delete ")) for entry in STORE.log)

        def kill(entry):
            if sum(each.startswith(("write ", "delete ")) for each in (*STORE.log, entry)) > began + kill_at:  # noqa: B023
                raise Killed

        STORE.before = kill
        with pytest.raises(Killed):
            folders.move(bucket / "from", bucket / "to", first="step.json")
        STORE.before = lambda entry: None
        sides = [STORE.folder(f"gs://bucket/run/{side}") for side in ("from", "to")]
        assert whole in sides and all("step.json" in side for side in sides if side), kill_at


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
    with pytest.raises(buckets.StoreError, match="2 bytes here, 4 there"):
        files.local_copy(bucket / "a.npy")
    assert not list((tmp_path / "cache").iterdir())


def test_a_full_disk_is_not_an_error_of_the_store(bucket, monkeypatch):
    def full(self, remote, local):
        raise OSError(errno.ENOSPC, "No space left on device", local)

    STORE.write("bucket/run/a.npy", b"1234")
    monkeypatch.setattr(FakeFileSystem, "get_file", full)
    with pytest.raises(UserError, match="No space left on device") as error:
        load_array(bucket / "a.npy")
    assert not isinstance(error.value.__cause__, buckets.StoreError)


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
