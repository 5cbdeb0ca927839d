"""Which files of a folder are clips, and what its digests depend on. The files need not be audio."""

import json
import os
import shutil
import unicodedata

import pytest

from musiclm_jax.data import hashing, walk
from musiclm_jax.data.folder import ClipFolder, check_captions, read_folder
from musiclm_jax.data.splits import held_out as choose_held_out
from musiclm_jax.errors import UserError

ASPECTS = ("waves", "splits", "captions", "melodies", "voices")


def make(folder, names, lines=None):
    """Files of one line, their own name; lines: name -> the other keys of its line of metadata.jsonl."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    if lines is not None:
        (folder / "metadata.jsonl").write_text("".join(json.dumps({"file_name": name, **entry}) + "\n" for name, entry in lines.items()))
    return folder


def names(folder: ClipFolder):
    return [entry.file_name for entry in folder.entries]


# ---------------------------------------------------------------------------------------------------------------------- Which files


def test_without_metadata_all_audio_is_clips_and_texts_beside_them_are_captions(tmp_path):
    folder = make(tmp_path / "in", ["a.wav", "b/c.FLAC", "b/d.mp3", "e.pdf"])
    (folder / "a.txt").write_text("one\n\ntwo\n")
    (folder / "b" / "d.txt").mkdir()
    read = read_folder(folder)
    assert [(entry.file_name, entry.captions, entry.kinds) for entry in read.entries] == [
        ("a.wav", ("one", "two"), None), ("b/c.FLAC", (), None), ("b/d.mp3", (), None)
    ]  # fmt: skip
    assert read.unusable == () and read.warnings == () and [entry.file_name for entry in read.captioned] == ["a.wav"]


def test_texts_without_a_clip_are_named_where_others_have_one(tmp_path):
    folder = make(tmp_path, ["a.wav", "a.flac", "b.wav"])
    for name in ("a", "c", "d"):
        (folder / f"{name}.txt").write_text("music")
    assert read_folder(folder).warnings == ("2 text files have no audio file of the same name and are ignored, such as c.txt",)
    (folder / "a.txt").unlink()
    assert read_folder(folder).warnings == ()


def test_with_metadata_the_listed_files_are_clips_and_the_others_are_named_once(tmp_path):
    lines = {"b.wav": {"captions": {"short": ["x"]}, "attributes": {"n": 1}}, "a.wav": {"melody": "m"}, "d.w64": {}, ".h.wav": {}, "no.wav": {}, "sub": {}}
    folder = read_folder(make(tmp_path, ["a.wav", "b.wav", "c.wav", "sub/e.wav", "d.w64", ".h.wav", "a.txt"], lines))
    assert names(folder) == [".h.wav", "a.wav", "b.wav", "d.w64"]
    assert folder.entries[2].kinds == ("short",) and folder.entries[2].attributes == {"n": 1} and folder.entries[1].melody == "m"
    assert folder.unusable == (("no.wav", "no such file; put it there, or correct its name"), ("sub", "is a folder; name one audio file"))
    assert len(folder.warnings) == 1 and "2 audio files are not listed" in folder.warnings[0] and folder.warnings[0].endswith("such as c.wav")


def test_junk_is_passed_over(tmp_path):
    junk = ["._a.wav", ".b.wav", "__MACOSX/a.wav", ".ipynb_checkpoints/a-checkpoint.wav", "sub/.hidden/deep/a.wav", "@eaDir/a.wav", "a.wav.part", ".DS_Store"]
    folder = make(tmp_path, ["a.wav", "take.wav/b.wav", *junk])
    os.mkfifo(folder / "pipe.wav")
    assert names(read_folder(folder)) == ["a.wav", "take.wav/b.wav"]


def test_work_folders_are_passed_over_even_where_they_are_the_data_folder(tmp_path):
    work = ["prepare/step.json", "prepare/x.wav", "export/step.json", "export/deep/x.wav", "superseded/a/x.wav", ".locks/x.wav"]
    folder = make(tmp_path, ["a.wav", "mine/b.wav", *work, *(f"run/{name}" for name in work), "run/own.wav"])
    assert names(read_folder(folder)) == ["a.wav", "mine/b.wav", "run/own.wav"]
    shutil.rmtree(folder / "prepare")
    shutil.rmtree(folder / "export")
    assert names(read_folder(folder)) == ["a.wav", "mine/b.wav", "run/own.wav", "superseded/a/x.wav"]  # A name like any other.


def test_linked_folders_are_followed_once_and_loops_are_harmless(tmp_path):
    make(tmp_path / "other", ["x.wav", "deep/y.wav"])
    folder = make(tmp_path / "in", ["z/a.wav", "b.wav"])
    for link, target in {"loop": ".", "up": "..", "z/loop": "../z", "sub": "../other", "twice": "../other", "aa": "z", "c.wav": "../other/x.wav"}.items():
        (folder / link).symlink_to(target)
    (tmp_path / "other" / "back").symlink_to("../in")
    (folder / "gone.wav").symlink_to("nowhere")
    (folder / "gone").symlink_to("nowhere")
    read = read_folder(folder)
    assert names(read) == ["b.wav", "c.wav", "sub/deep/y.wav", "sub/x.wav", "z/a.wav"]
    assert read.unusable == (("gone.wav", "is a link to a file that is not there; put the file itself there, or remove the link"),)
    (tmp_path / "link").symlink_to("in")
    assert read_folder(tmp_path / "link").entries == read.entries
    # A listed name may go through a link, but not climb out of the folder.
    (folder / "metadata.jsonl").write_text("".join(json.dumps({"file_name": name}) + "\n" for name in ("sub/x.wav", "./z//a.wav", "loop/b.wav")))
    assert names(read_folder(folder)) == ["loop/b.wav", "sub/x.wav", "z/a.wav"]


@pytest.mark.parametrize("name", ["../outside.wav", "sub/../../outside.wav", "/etc/outside.wav", "{absolute}"])
def test_files_outside_are_named_and_not_used(tmp_path, name):
    make(tmp_path, ["outside.wav"])
    name = name.format(absolute=tmp_path / "in" / "a.wav")
    read = read_folder(make(tmp_path / "in", ["a.wav"], {"a.wav": {}, name: {}}))
    assert names(read) == ["a.wav"] and len(read.unusable) == 1
    assert read.unusable[0][0] == os.path.normpath(name) and "is outside of" in read.unusable[0][1]


def test_names_are_the_same_however_accents_are_written(tmp_path):
    nfc, nfd = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    folder = make(tmp_path / "a", [f"{nfd}.wav", "b.wav"], {f"{nfc}.wav": {"caption": "x"}, "b.wav": {}})
    assert names(read_folder(folder)) == ["b.wav", f"{nfd}.wav"]
    with (folder / "metadata.jsonl").open("a") as file:
        file.write(json.dumps({"file_name": f"{nfd}.wav"}))
    with pytest.raises(UserError, match="line 3: .* is listed twice"):
        read_folder(folder)
    folder = make(tmp_path / "b", [f"{nfd}.wav"])
    (folder / f"{nfc}.txt").write_text("x")
    assert read_folder(folder).entries[0].captions == ("x",)
    # Both are there: each is itself.
    folder = make(tmp_path / "c", [f"{nfd}.wav", f"{nfc}.wav"], {f"{nfc}.wav": {}})
    assert names(read_folder(folder)) == [f"{nfc}.wav"]
    # Letters of another case are another name.
    assert [name for name, _ in read_folder(make(tmp_path / "d", ["A.wav", "b.wav"], {"a.wav": {}, "b.wav": {}})).unusable] == ["a.wav"]


def test_a_name_that_is_no_text_is_named(tmp_path):
    make(tmp_path, ["a.wav"])
    with open(os.fsencode(tmp_path) + b"/caf\xe9.wav", "w"):
        pass
    read = read_folder(tmp_path)
    assert names(read) == ["a.wav"] and read.unusable == (("caf\\xe9.wav", "its name is not UTF-8; rename it"),)


def test_folders_without_clips(tmp_path):
    with pytest.raises(UserError, match="is not a folder"):
        read_folder(tmp_path / "nowhere")
    with pytest.raises(UserError, match="contains no audio"):
        read_folder(make(tmp_path, ["a.pdf"]))
    with pytest.raises(UserError, match="contains 1 clips that cannot be used and no other, such as a.wav: no such file"):
        read_folder(make(tmp_path / "captions", ["a.pdf"], {"a.wav": {"caption": "x"}}))
    with pytest.raises(UserError, match=r"lists no file that exists, such as sub/a\.wav: write the names as they are"):
        read_folder(make(tmp_path / "elsewhere", ["sub/a.wav"], {"a.wav": {}}))
    with pytest.raises(UserError, match=r"metadata\.jsonl lists no clip"):
        read_folder(make(tmp_path / "empty", ["a.wav"], {}))
    with pytest.raises(UserError, match=r"metadata\.jsonl is not a file"):
        read_folder(make(tmp_path / "odd", ["a.wav", "metadata.jsonl/b.wav"]))


def test_captions_are_asked_for_where_they_are_needed(tmp_path):
    with pytest.raises(UserError, match="1 audio files but no captions: add metadata.jsonl"):
        check_captions(read_folder(make(tmp_path / "a", ["a.wav"])))
    with pytest.raises(UserError, match="no clip of .* has a caption: add captions .* only melody can be trained"):
        check_captions(read_folder(make(tmp_path / "b", ["a.wav"], {"a.wav": {"melody": "m"}})))
    check_captions(read_folder(make(tmp_path / "c", ["a.wav", "b.wav"], {"a.wav": {"caption": "x"}, "b.wav": {}})))


def test_files_that_cannot_be_read(tmp_path, monkeypatch):
    folder = make(tmp_path / "in", ["a.wav", "b.wav"])
    original = type(folder).open

    def refuse(path, *arguments, **options):
        if path.name == "a.wav":
            raise PermissionError(13, "Permission denied")
        return original(path, *arguments, **options)

    monkeypatch.setattr(type(folder), "open", refuse)
    read = read_folder(folder)
    assert names(read) == ["b.wav"] and read.unusable == (("a.wav", "cannot be read (Permission denied); change its permissions, or remove it"),)
    (folder / "b.wav").unlink()
    with pytest.raises(UserError, match=r"has no audio file that can be read, such as a\.wav: cannot be read"):
        read_folder(folder)

    def closed(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(walk.os, "scandir", closed)
    with pytest.raises(UserError, match="in cannot be read .Permission denied.: change its permissions"):
        read_folder(folder)


# ---------------------------------------------------------------------------------------------------------------------- Splits


def test_held_out_clips_are_a_stable_twentieth():
    names = [f"{i}.wav" for i in range(2000)]
    held_out = choose_held_out(names)
    assert 70 < len(held_out) < 130
    assert set(choose_held_out(names + ["new.wav"])) - {"new.wav"} == set(held_out)
    assert len(choose_held_out(["a", "b"])) == 1 and choose_held_out(["a"]) == []


def test_renderings_of_a_melody_stay_together(tmp_path):
    lines = {f"{i:02d}.wav": {"melody": f"tune {i // 2}"} for i in range(12)} | {"x.wav": {"caption": "a tone"}}
    read = read_folder(make(tmp_path, lines, lines))
    held_out = choose_held_out(sorted({"x.wav", *(f"tune {i}" for i in range(6))}))
    assert held_out and {entry.melody or entry.file_name for entry in read.split("test")} == set(held_out)


def test_given_splits_are_kept(tmp_path):
    read = read_folder(make(tmp_path / "a", ["a.wav", "b.wav"], {"a.wav": {"split": "test"}, "b.wav": {}}))
    assert [entry.split for entry in read.entries] == ["test", "train"]
    lines = {"a.wav": {"melody": "x"}, "b.wav": {"melody": "x", "split": "test"}}
    with pytest.raises(UserError, match="melody 'x' in both splits"):
        read_folder(make(tmp_path / "b", lines, lines))


# ---------------------------------------------------------------------------------------------------------------------- Digests


LINES = {
    "a.wav": {"caption": "x", "split": "train"},
    "b.wav": {"captions": {"short": ["y"]}, "melody": "m", "split": "train"},
    "c.wav": {"melody": "m", "split": "train"},
    "d.wav": {"caption": "z", "split": "test"},
    "e.wav": {},
}


@pytest.mark.parametrize(
    ("change", "aspects"),
    [
        ({}, ()),
        ({"d.wav": {"caption": "other", "split": "test"}}, ("captions",)),
        ({"b.wav": {"captions": {"long": ["y"]}, "melody": "m", "split": "train"}}, ("captions",)),
        ({"e.wav": {"split": "train", "attributes": {"n": 1}}}, ()),
        ({"e.wav": {"split": "test"}}, ("splits",)),
        ({"e.wav": {"melody": "n"}}, ("melodies",)),
        ({"e.wav": {"voice": "c.wav"}}, ("voices",)),
        ({"c.wav": {"melody": "n", "split": "train"}}, ("melodies",)),
        ({"e.wav": None}, ("waves", "splits")),
        ({"a.wav": None}, ("waves", "splits", "captions")),
        ({"none.wav": {"caption": "missing"}}, ()),
    ],
)
def test_a_digest_depends_on_its_aspect_alone(tmp_path, change, aspects):
    before = read_folder(make(tmp_path / "a", LINES, LINES))
    lines = {name: entry for name, entry in (LINES | change).items() if entry is not None}
    after = read_folder(make(tmp_path / "b", LINES, dict(reversed(lines.items()))))
    assert {aspect for aspect in ASPECTS if before.digest(aspect) != after.digest(aspect)} == set(aspects)


def test_the_waves_are_the_contents(tmp_path):
    folder = make(tmp_path, ["a.wav", "b.wav"])
    before = read_folder(folder).digest("waves")
    os.utime(folder / "a.wav", (1, 1))
    assert read_folder(folder).digest("waves") == before
    (folder / "a.wav").write_text("b.wav")
    assert read_folder(folder).digest("waves") != before
    with pytest.raises(ValueError, match="hash_files=True"):
        read_folder(folder, hash_files=False).digest("waves")
    with pytest.raises(ValueError, match="expected one of waves, splits, captions, melodies"):
        read_folder(folder).digest("texts")


def test_only_new_and_touched_files_are_read_again(tmp_path, monkeypatch):
    folder, cache = make(tmp_path / "in", ["a.wav", "b.wav", "c.wav"]), tmp_path / "work" / "hashes.json"
    log = []

    def read(path=folder):
        log.clear()
        done = []
        digest = read_folder(path, hashes=cache, on_progress=lambda *report: done.append(report)).digest("waves")
        assert done == [("reading", i + 1, len(log)) for i in range(len(log))]
        return digest, sorted(log)

    original = hashing.hashlib.file_digest
    monkeypatch.setattr(hashing.hashlib, "file_digest", lambda file, kind: log.append(os.path.basename(file.name)) or original(file, kind))
    first, all_files = read()
    assert all_files == ["a.wav", "b.wav", "c.wav"] and read() == (first, [])
    assert [path.name for path in cache.parent.iterdir()] == ["hashes.json"]
    os.utime(folder / "b.wav", (1, 1))
    assert read() == (first, ["b.wav"])
    # Another content of the same size.
    (folder / "a.wav").write_text("A.wav")
    changed, files = read()
    assert changed != first and files == ["a.wav"]
    shutil.copytree(folder, tmp_path / "copy", copy_function=shutil.copyfile)
    assert read(tmp_path / "copy") == (changed, ["a.wav", "b.wav", "c.wav"])
    (folder / "c.wav").unlink()
    read()
    assert list(json.loads(cache.read_text())["files"]) == ["a.wav", "b.wav"]
    for broken in ("", "[]", '{"files": {"a.wav": 3}}'):
        cache.write_text(broken)
        assert read()[1] == ["a.wav", "b.wav"]
    cache.unlink()
    cache.mkdir()
    with pytest.raises(UserError, match=r"hashes\.json cannot be written"):
        read()
