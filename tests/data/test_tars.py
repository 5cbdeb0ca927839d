"""Tar shards: their members are clips of the folder, read in place."""

import dataclasses
import hashlib
import io
import json
import tarfile

import numpy as np
import pytest
import soundfile
from fake_gcs import STORE

from musiclm_jax import audio, tars
from musiclm_jax.data.clips import prepare
from musiclm_jax.data.folder import read_folder
from musiclm_jax.data.inspection import inspect_clips
from musiclm_jax.errors import UserError

RATE = 24_000


def sound(seconds: float, seed: int = 0, format: str = "FLAC") -> bytes:
    file, wave = io.BytesIO(), np.random.default_rng(seed).uniform(-0.5, 0.5, round(seconds * RATE))
    soundfile.write(file, wave, RATE, format=format, subtype="PCM_16")
    return file.getvalue()


def member(name: str, data: bytes = b"", **fields) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for field, value in fields.items():
        setattr(info, field, value)
    return info, data


def shard(*members: tuple[tarfile.TarInfo, bytes], format: int = tarfile.PAX_FORMAT) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=format) as archive:
        for info, data in members:
            archive.addfile(info, io.BytesIO(data))
    return file.getvalue()


def clips(*numbers: int) -> list[tuple[tarfile.TarInfo, bytes]]:
    """A clip of 2 s and its caption for each number."""
    return [each for i in numbers for each in (member(f"{i}.flac", sound(2, i)), member(f"{i}.txt", f"caption {i}".encode()))]


def write(folder, files: dict[str, bytes]):
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def names(folder):
    return [entry.file_name for entry in folder.entries]


SHARDS = {
    "train/a.tar": shard(*clips(0, 1, 2)),
    "test/b.tar": shard(member("./x/9.flac", sound(2, 9)), member("./x/9.json", json.dumps({"text": "nine", "group": "g"}).encode())),
}


def test_members_are_clips_with_the_texts_beside_them(tmp_path):
    found = read_folder(write(tmp_path, SHARDS))
    read = [(entry.file_name, entry.captions, entry.split, entry.group) for entry in found.entries]
    train = [(f"train/a.tar/{i}.flac", (f"caption {i}",), "train", None) for i in range(3)]
    assert read == [("test/b.tar/x/9.flac", ("nine",), "test", "g"), *train]
    assert found.unusable == () and found.warnings == ()
    assert found.entries[1].sha256 == hashlib.sha256(sound(2, 0)).hexdigest()


def test_a_store_of_tars_has_the_samples_of_the_unpacked_files(tmp_path):
    packed = prepare(read_folder(write(tmp_path / "packed", SHARDS)), tmp_path / "one", sample_rate_hz=RATE)
    loose = write(tmp_path / "loose", {"test/9.flac": sound(2, 9), **{f"train/{i}.flac": sound(2, i) for i in range(3)}})
    unpacked = prepare(read_folder(loose), tmp_path / "two", sample_rate_hz=RATE)
    assert np.array_equal(packed.samples, unpacked.samples) and len(packed.samples) == 8 * RATE
    facts = inspect_clips(read_folder(tmp_path / "packed"))
    assert [(clip.seconds, clip.format, clip.reason) for clip in facts] == [(2.0, "FLAC PCM_16", None)] * 4


def test_a_data_set_of_tfds_is_built_of_tars(tmp_path):
    tfds = pytest.importorskip("tensorflow_datasets")
    from musiclm_jax.data import tfds_builders  # noqa: F401

    builder = tfds.builder("captioned_folder", folder=str(write(tmp_path / "in", SHARDS)), data_dir=tmp_path / "out", file_format="array_record")
    builder.download_and_prepare()
    found = {example["id"].decode(): example for example in builder.as_data_source(split="train")}
    assert sorted(found) == [f"train/a.tar/{i}.flac" for i in range(3)] and builder.left_out == []
    assert found["train/a.tar/1.flac"]["audio"].shape == (2 * RATE,) and list(found["train/a.tar/1.flac"]["captions"]) == [b"caption 1"]


@pytest.mark.parametrize("format", ["FLAC", "MP3", "WAV", "OGG"])
def test_each_format_is_read_between_other_members(tmp_path, format):
    file = io.BytesIO()
    soundfile.write(file, np.random.default_rng(0).uniform(-0.5, 0.5, (3 * 44_100, 2)), 44_100, format=format)
    write(tmp_path, {"a.tar": shard(member("0", b"\xff" * 999), member("1.x", file.getvalue()), member("2", b"\xff" * 999)), "loose": file.getvalue()})
    assert np.array_equal(audio.read(tmp_path / "a.tar/1.x"), audio.read(tmp_path / "loose"))


def test_an_object_store_reads_ranges_of_a_tar(bucket):
    data = bucket / "data"
    big = shard(member("pad.bin", bytes(2**21)), *clips(0, 1))
    (data / "a.tar").write_bytes(big)
    STORE.log.clear()
    found = read_folder(data)
    assert names(found) == ["a.tar/0.flac", "a.tar/1.flac"] and found.entries[0].captions == ("caption 0",)
    waves = [audio.read(data / name) for name in names(found)]
    assert all(len(wave) == 2 * RATE for wave in waves) and found.entries[1].sha256 == hashlib.sha256(sound(2, 1)).hexdigest()
    reads = [line for line in STORE.log if "a.tar" in line and line.startswith(("read", "range"))]
    assert all(line.startswith("range") for line in reads) and len(reads) <= 7


def test_parts_tables_and_groups(tmp_path):
    rows = [{"file_name": "a.tar/0.flac", "text": f"part {i}", "start_sec": i, "end_sec": i + 1, "group": "g"} for i in range(2)] + [{"file_name": "b.flac"}]
    table = "".join(json.dumps(row) + "\n" for row in [*rows, {"file_name": "a.tar/7.flac"}]).encode()
    found = read_folder(write(tmp_path, {"a.tar": shard(*clips(0, 1)), "b.flac": sound(2, 5), "metadata.jsonl": table}))
    assert [(entry.name, entry.captions, entry.group) for entry in found.entries] == [
        ("a.tar/0.flac[0-1]", ("part 0",), "g"), ("a.tar/0.flac[1-2]", ("part 1",), "g"), ("b.flac", (), None)
    ]  # fmt: skip
    assert found.unusable == (("a.tar/7.flac", "no such file; put it there, or correct its name"),)
    assert "a.tar/1.flac" in found.warnings[0]
    store = prepare(dataclasses.replace(found, unusable=()), tmp_path / "store", sample_rate_hz=RATE)
    assert np.array_equal(store.wave(store.clips[1]), audio.read(tmp_path / "a.tar/0.flac")[RATE:])


def test_names_of_any_length_and_script_in_each_format_of_tar(tmp_path):
    name = "é" * 60 + "/" + "n" * 80 + "/日本\n.flac"
    for format in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        write(tmp_path, {"a.tar": shard(member(name, sound(1)), format=format)})
        assert names(read_folder(tmp_path)) == [f"a.tar/{name}"] and len(audio.read(tmp_path / "a.tar" / name)) == RATE


def test_hidden_members_are_passed_over_and_others_refused_by_name(tmp_path):
    link = member("link.flac", type=tarfile.SYMTYPE, linkname="0.flac")
    sparse = member("sparse.flac", bytes(512), type=tarfile.GNUTYPE_SPARSE)
    odd = [member("../up.flac", sound(1)), member("/abs.flac", sound(1)), link, sparse, member("caf\udce9.flac", sound(1))]
    hidden = [member("._0.flac", b"x"), member("__MACOSX/0.flac", b"x"), member(".git/0.flac", b"x"), member("dir", type=tarfile.DIRTYPE)]
    found = read_folder(write(tmp_path, {"a.tar": shard(*clips(0), *odd, *hidden, format=tarfile.GNU_FORMAT)}))
    assert names(found) == ["a.tar/0.flac"]
    assert [(name, reason.split(";")[0]) for name, reason in found.unusable] == [
        ("a.tar/../up.flac", "its name leads out of its tar"),
        ("a.tar//abs.flac", "its name leads out of its tar"),
        ("a.tar/caf\\xe9.flac", "its name is not UTF-8"),
        ("a.tar/link.flac", "is a link or a sparse file in its tar"),
        ("a.tar/sparse.flac", "is a link or a sparse file in its tar"),
    ]


def test_of_several_members_of_one_name_the_last_counts(tmp_path):
    write(tmp_path, {"a.tar": shard(member("0.flac", sound(1)), member("./0.flac", sound(2)))})
    assert names(read_folder(tmp_path)) == ["a.tar/0.flac"] and len(audio.read(tmp_path / "a.tar/0.flac")) == 2 * RATE


# ---------------------------------------------------------------------------------------------------------------------- Damage


def test_readable_members_of_a_damaged_tar_are_used_and_the_damage_is_named(tmp_path):
    data = bytearray(shard(*clips(0, 1, 2)))
    at = bytes(data).index(b"1.flac")
    data[at : at + 4] = b"\xff\xff\xff\xff"  # The header of 1.flac, whose checksum is wrong then.
    found = read_folder(write(tmp_path, {"a.tar": bytes(data)}))
    assert names(found) == ["a.tar/0.flac", "a.tar/2.flac"]
    assert found.unusable == (("a.tar", f"the tar is damaged from byte {at} on; copy it again, or repair it"),)


@pytest.mark.parametrize("what", ["in a member", "in a header", "after a member"])
def test_a_tar_that_is_cut_off(tmp_path, what):
    whole = shard(*clips(0, 1))
    at = whole.index(b"1.flac")
    cut = {"in a member": at + 512 + 1000, "in a header": at + 100, "after a member": at}[what]
    found = read_folder(write(tmp_path, {"a.tar": whole[:cut]}))
    assert names(found) == ["a.tar/0.flac"]
    assert [name for name, _ in found.unusable] == {"in a member": ["a.tar/1.flac"]}.get(what, ["a.tar"])
    assert all("copy" in reason for _, reason in found.unusable)


def test_tars_that_were_joined_are_read_whole(tmp_path):
    found = read_folder(write(tmp_path, {"a.tar": shard(*clips(0)) + shard(*clips(1))}))
    assert names(found) == ["a.tar/0.flac", "a.tar/1.flac"] and found.unusable == ()


@pytest.mark.parametrize("data", [b"", b"no tar at all" * 999, b"\x1f\x8b" + bytes(5000)])
def test_what_is_no_tar_is_named(tmp_path, data):
    write(tmp_path, {"a.tar": data})
    with pytest.raises(UserError, match=r"a\.tar: the tar is damaged from byte 0 on; copy it again"):
        read_folder(tmp_path)


def test_compressed_tars_are_refused_with_the_command(tmp_path):
    write(tmp_path, {"a.tar.gz": b"x"})
    with pytest.raises(UserError, match=r"a\.tar\.gz: the tar is compressed.*decompress it: gunzip a\.tar\.gz$"):
        read_folder(tmp_path)
    found = read_folder(write(tmp_path, {"b.tar": shard(*clips(0))}))
    assert names(found) == ["b.tar/0.flac"] and [name for name, _ in found.unusable] == ["a.tar.gz"]


def test_tars_beside_audio_are_not_read_without_a_table(tmp_path):
    found = read_folder(write(tmp_path, {"a.tar": shard(*clips(0)), "0.flac": sound(2)}))
    assert names(found) == ["0.flac"] and found.warnings[0].startswith("1 tars are not read, such as a.tar")


# ---------------------------------------------------------------------------------------------------------------------- Changes


def test_hashes_are_kept_until_the_tar_changes(tmp_path, monkeypatch):
    folder, cache = write(tmp_path / "in", {"a.tar": shard(*clips(0, 1))}), tmp_path / "hashes.json"
    first = read_folder(folder, hashes=cache)
    opened = []
    monkeypatch.setattr("musiclm_jax.data.hashing.open_file", lambda path: opened.append(path.name) or tars.open_file(path))
    assert read_folder(folder, hashes=cache) == first and opened == []
    write(folder, {"a.tar": shard(*clips(2, 1, 0))})
    again = read_folder(folder, hashes=cache)
    assert sorted(opened) == ["0.flac", "1.flac", "2.flac"]
    assert [entry.sha256 for entry in again.entries[:2]] == [entry.sha256 for entry in first.entries]


def test_a_tar_that_changed_is_indexed_again(tmp_path):
    write(tmp_path, {"a.tar": shard(*clips(0))})
    audio.read(tmp_path / "a.tar/0.flac")
    write(tmp_path, {"a.tar": shard(member("first.bin", bytes(9999)), member("0.flac", sound(3)))})
    assert len(audio.read(tmp_path / "a.tar/0.flac")) == 3 * RATE


def test_a_folder_may_end_in_tar(tmp_path):
    folder = write(tmp_path / "x.tar", {"sub.tar/0.flac": sound(1), "sub.tar/0.txt": b"one"})
    found = read_folder(folder)
    assert names(found) == ["sub.tar/0.flac"] and found.entries[0].captions == ("one",)
    with pytest.raises(UserError, match="no such file"):
        audio.read(folder / "sub.tar/1.flac")


def test_part_of_a_file_reads_as_a_file_of_its_own(tmp_path):
    write(tmp_path, {"a.tar": shard(member("a", b"aaa"), member("b", bytes(range(50))), member("c", b"ccc"))})
    with tars.open_file(tmp_path / "a.tar/b") as file:
        assert file.read() == bytes(range(50)) and file.read() == b""
        assert file.seek(-5, 2) == 45 and file.read(99) == bytes(range(45, 50))
        assert file.seek(7) == 7 and file.seek(3, 1) == 10 and file.read(2) == bytes((10, 11)) and file.tell() == 12
