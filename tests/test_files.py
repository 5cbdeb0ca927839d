"""Files and folders are written as a whole or not at all; JSON files; hashes."""

import errno
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from musiclm_jax import files, folders
from musiclm_jax.errors import UserError, unwritable
from musiclm_jax.files import atomic_path, parse_json, read_json, sha256_file, write_bytes, write_json, write_text


def test_json_files(tmp_path):
    write_json(tmp_path / "b.json", {"a name that is not UTF-8": os.fsdecode(b"\xffa")})
    assert read_json(tmp_path / "b.json") == {"a name that is not UTF-8": os.fsdecode(b"\xffa")}
    write_json(tmp_path / "new" / "a.json", {"π": [1, None]})
    assert read_json(tmp_path / "new" / "a.json") == {"π": [1, None]}
    (tmp_path / "bom.json").write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_json(tmp_path / "bom.json") == {"a": 1}
    with pytest.raises(UserError, match=r"none\.json cannot be read, No such file"):
        read_json(tmp_path / "none.json")


@pytest.mark.parametrize("text", [b"", b"\xff", b"{", b'{"a": 1, "b": {"c": 1, "c": 1}}', b"[" * 100_000, b"1" * 5000])
def test_bad_json_is_one_line(tmp_path, text):
    (tmp_path / "a.json").write_bytes(text)
    with pytest.raises(UserError, match=r"a\.json is not valid JSON \(.*\): delete it and make it again$"):
        read_json(tmp_path / "a.json")


def test_parse_json_names_the_double():
    with pytest.raises(ValueError, match="'c' occurs twice"):
        parse_json('{"c": 1, "d": 2, "c": 1}')


def test_sha256_file(tmp_path):
    (tmp_path / "a").write_bytes(b"abc" * 100_003)
    assert sha256_file(tmp_path / "a") == hashlib.sha256(b"abc" * 100_003).hexdigest()
    with pytest.raises(UserError, match="cannot be read, Is a directory"):
        sha256_file(tmp_path)


def full_disk(path):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    write_text(tmp_path / "a", "old\n")
    with pytest.raises(ZeroDivisionError), atomic_path(tmp_path / "a") as temporary:
        temporary.write_text("half")
        1 / 0  # noqa: B018
    with pytest.raises(KeyboardInterrupt), atomic_path(tmp_path / "a") as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    monkeypatch.setattr(files, "sync", full_disk)
    with pytest.raises(UserError) as error:
        write_bytes(tmp_path / "a", b"new")
    assert str(error.value) == f"{tmp_path / 'a'} cannot be written, the disk is full: free some space and run the same command again"
    assert os.listdir(tmp_path) == ["a"] and (tmp_path / "a").read_bytes() == b"old\n"


def test_what_a_killed_write_left_is_removed_by_the_next(tmp_path):
    program = f"""
import os
from musiclm_jax.files import atomic_path
with atomic_path({str(tmp_path / "a")!r}) as temporary:
    temporary.write_text("half")
    os._exit(9)
"""
    assert subprocess.run([sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": str(Path(files.__file__).parents[1])}).returncode == 9
    (left,) = os.listdir(tmp_path)
    assert left.startswith(".a.") and left.endswith(".tmp")
    write_text(tmp_path / "a", "π")
    assert os.listdir(tmp_path) == ["a"] and (tmp_path / "a").read_bytes() == "π".encode()


def test_what_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "file" / "a", tmp_path / "folder", tmp_path / ("x" * 300)):
        with pytest.raises(UserError) as error:
            write_text(path, "new")
        assert str(error.value).startswith(f"{path} cannot be written, ")
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"] and (tmp_path / "file").read_text() == "mine"


def test_processes_that_write_the_same_file_do_not_disturb_each_other(tmp_path):
    program = f"""
from musiclm_jax.files import write_text
for i in range(200):
    write_text({str(tmp_path / "a")!r}, "0123456789" * 1000)
"""
    command, env = [sys.executable, "-c", program], {**os.environ, "PYTHONPATH": str(Path(files.__file__).parents[1])}
    writers = [subprocess.Popen(command, env=env) for _ in range(3)]
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    assert os.listdir(tmp_path) == ["a"] and len((tmp_path / "a").read_text()) == 10_000


def test_a_link_where_the_temporary_goes_is_not_followed(tmp_path):
    (tmp_path / "mine").write_text("mine")
    with atomic_path(tmp_path / "a") as temporary:
        name = temporary.name
        temporary.write_text("old")
    (tmp_path / name).symlink_to(tmp_path / "mine")
    write_text(tmp_path / "a", "new")
    assert (tmp_path / "mine").read_text() == "mine" and not (tmp_path / "a").is_symlink()


def test_remedies():
    says = {number: str(unwritable("a", OSError(number, os.strerror(number)))) for number in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EIO)}
    assert len(set(says.values())) == 4 and "quota" in says[errno.EDQUOT] and "permission" in says[errno.EACCES]
    assert says[errno.EIO] == f"a cannot be written, {os.strerror(errno.EIO)}: check the path, or write elsewhere"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="only Linux has a full disk at hand")
def test_numpys_word_for_a_full_disk_is_understood():
    with pytest.raises(OSError) as error, open("/dev/full", "wb", buffering=0) as file:
        np.save(file, np.zeros(1_000_003, np.float32))
    assert "the disk is full" in str(unwritable("a.npy", error.value))


# ------------------------------------------------------------------------------------------------- folders


def fill(path, text):
    def check(folder):
        if os.listdir(folder) != ["a"]:
            raise UserError(f"{folder}: not ours")

    with folders.atomic_folder(path, check=check, last="a") as folder:
        (folder / "a").write_text(text)


def test_a_folder_is_replaced_whole(tmp_path):
    for text in ("old", "new"):
        fill(tmp_path / "f", text)
        assert os.listdir(tmp_path) == ["f"] and os.listdir(tmp_path / "f") == ["a"] and (tmp_path / "f" / "a").read_text() == text
    (tmp_path / "link").symlink_to(tmp_path / "f")
    fill(tmp_path / "link", "newer")
    assert (tmp_path / "f" / "a").read_text() == "newer" and sorted(os.listdir(tmp_path)) == ["f", "link"]


def test_the_current_folder_is_not_replaced(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="current folder"):
        fill(".", "new")


# Where a run dies: in the body, between the renames, before the old folder is removed. What the name shows then, and after the next run.
@pytest.mark.parametrize(("dies_in", "shows"), [("body", "old"), ("rename", "old"), ("sync", "new")])
def test_a_killed_run_is_recovered(tmp_path, monkeypatch, dies_in, shows):
    fill(tmp_path / "f", "old")
    program = f"""
import os
from pathlib import Path
from musiclm_jax import folders
if {dies_in!r} == "rename":
    real = Path.rename
    Path.rename = lambda path, to: os._exit(9) if path.name == ".f.tmp" else real(path, to)
if {dies_in!r} == "sync":
    real_sync = folders.sync
    folders.sync = lambda path: os._exit(9) if path == Path({str(tmp_path)!r}) else real_sync(path)
with folders.atomic_folder({str(tmp_path / "f")!r}, check=lambda path: None, last="a") as folder:
    (folder / "a").write_text("new")
    if {dies_in!r} == "body":
        os._exit(9)
"""
    assert subprocess.run([sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": str(Path(files.__file__).parents[1])}).returncode == 9
    left = {"body": [".f.tmp", "f"], "rename": [".f.old", ".f.tmp"], "sync": [".f.old", "f"]}
    assert sorted(os.listdir(tmp_path)) == left[dies_in]
    assert (folders.readable_folder(tmp_path / "f") / "a").read_text() == shows
    fill(tmp_path / "f", "newest")
    assert os.listdir(tmp_path) == ["f"] and (tmp_path / "f" / "a").read_text() == "newest"


@pytest.mark.parametrize("name", ["f", ".f.tmp", ".f.old"])
def test_what_is_not_ours_is_never_deleted(tmp_path, name):
    (tmp_path / name).mkdir()
    (tmp_path / name / "cat.jpg").write_text("")
    with pytest.raises(UserError, match="not ours"):
        fill(tmp_path / "f", "new")
    assert os.listdir(tmp_path) == [name] and os.listdir(tmp_path / name) == ["cat.jpg"]


def test_a_failed_folder_leaves_the_old_one(tmp_path, monkeypatch):
    fill(tmp_path / "f", "old")
    monkeypatch.setattr(folders, "sync", full_disk)
    with pytest.raises(UserError, match=r"f cannot be written, the disk is full"):
        fill(tmp_path / "f", "new")
    monkeypatch.undo()
    real = Path.rename
    monkeypatch.setattr(Path, "rename", lambda path, to: full_disk(path) if path.name == ".f.tmp" else real(path, to))
    with pytest.raises(UserError, match=r"f cannot be written, the disk is full"):
        fill(tmp_path / "f", "new")
    assert os.listdir(tmp_path) == ["f"] and (tmp_path / "f" / "a").read_text() == "old"
