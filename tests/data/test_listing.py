"""Layouts of folders: tables in folders of splits, parts of files, groups, formats that are not read, public data sets."""

import gzip
import json

import numpy as np
import pytest
import soundfile
from test_folder import make

from musiclm_jax.data.clips import prepare
from musiclm_jax.data.folder import read_folder
from musiclm_jax.data.layouts import FMA, MUSICCAPS
from musiclm_jax.data.metadata import Line
from musiclm_jax.data.splits import assign_splits
from musiclm_jax.errors import UserError


def splits_of(folder, **options):
    return {entry.name: entry.split for entry in read_folder(folder, hash_files=False, **options).entries}


def test_tables_in_folders_of_splits(tmp_path):
    folder = make(tmp_path, ["train/a.wav", "train/b.wav", "validation/a.wav", "other/c.wav"])
    (folder / "train" / "metadata.jsonl").write_text('{"file_name": "a.wav", "text": "calm"}\n{"file_name": "b.wav", "split": "test"}\n')
    (folder / "validation" / "metadata.csv").write_text("file_name,text\na.wav,fast\n")
    read = read_folder(folder, hash_files=False)
    assert [(entry.name, entry.captions, entry.split) for entry in read.entries] == [
        ("train/a.wav", ("calm",), "train"),
        ("train/b.wav", (), "test"),
        ("validation/a.wav", ("fast",), "test"),
    ]
    assert "1 audio file is not listed" in read.warnings[0]


def test_folders_say_the_split_where_one_is_held_out(tmp_path):
    held = make(tmp_path / "held", [f"train/{i}.wav" for i in range(40)] + ["Val/x.wav", "y.wav"])
    assert [name for name, split in splits_of(held).items() if split == "test"] == ["Val/x.wav"]
    all_train = make(tmp_path / "all", [f"train/{i}.wav" for i in range(40)])
    assert "test" in splits_of(all_train).values()  # By hash, as without the folder.


@pytest.mark.parametrize("group_by", ["listed", "folder", "name"])
def test_groups_are_held_out_together(tmp_path, group_by):
    names = [f"album {i}/song {i}_part{j}.wav" for i in range(30) for j in range(3)]
    lines = {name: {"group": name.partition("/")[0]} for name in names} if group_by == "listed" else None
    splits = splits_of(make(tmp_path, names, lines), group_by=group_by)
    held_out = {name.partition("/")[0] for name, split in splits.items() if split == "test"}
    assert 1 <= len(held_out) < 10
    assert all((name.partition("/")[0] in held_out) == (split == "test") for name, split in splits.items())


def test_what_is_shared_through_others_stays_together():
    lines = [("a.wav", Line(1, "a.wav", group="g", melody="m")), ("b.wav", Line(2, "b.wav", melody="m")), ("c.wav", Line(3, "c.wav", group="g"))]
    for i in range(40):
        lines.append((f"{i}.wav", Line(4, f"{i}.wav")))
    assert len(set(assign_splits(lines, where="t")[:3])) == 1


def test_a_group_in_both_splits_is_refused(tmp_path):
    lines = {"a.wav": {"group": "g", "split": "test"}, "b.wav": {"group": "g"}}
    with pytest.raises(UserError, match=r"metadata\.jsonl has group 'g' in both splits: give all of its clips the same split"):
        read_folder(make(tmp_path, ["a.wav", "b.wav"], lines), hash_files=False)


def test_parts_of_a_file_are_clips_of_their_own(tmp_path):
    folder, rate = tmp_path / "in", 8000
    folder.mkdir()
    soundfile.write(folder / "long.flac", np.repeat(np.array([0.1, 0.2, 0.3, 0.4]), 2 * rate) * np.tile([1.0, -1.0], 4 * rate), rate)
    rows = [{"file_name": "long.flac", "captions": [f"part {i}"], "start_sec": 2 * i, "end_time": 2 * i + 2} for i in range(4)]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    read = read_folder(folder)
    assert [entry.name for entry in read.entries] == ["long.flac[0-2]", "long.flac[2-4]", "long.flac[4-6]", "long.flac[6-8]"]
    assert len({entry.split for entry in read.entries}) == 1
    store = prepare(read, tmp_path / "out", sample_rate_hz=rate)
    assert [clip.length for clip in store.clips] == [2 * rate] * 4
    assert [round(float(np.abs(store.wave(clip)).max()), 2) for clip in store.clips] == [0.1, 0.2, 0.3, 0.4]
    (folder / "metadata.jsonl").write_text(json.dumps(rows[0]) + "\n" + json.dumps(rows[0]) + "\n")
    with pytest.raises(UserError, match=r"line 2: long\.flac is listed twice"):
        read_folder(folder)


def test_formats_that_are_not_read_are_named_with_their_remedy(tmp_path):
    (warning,) = read_folder(make(tmp_path, ["a.wav", "b.m4a", "c.AAC"]), hash_files=False).warnings
    assert warning == "2 files are of formats that cannot be read, such as b.m4a; to convert one: ffmpeg -i 'b.m4a' 'b.flac'"


MUSICCAPS_ROWS = """ytid,start_s,end_s,audioset_positive_labels,aspect_list,caption,author_id,is_balanced_subset,is_audioset_eval
-0Gj8,30,40,/m/0,"['calm']","A calm tune, slow",4,False,True
-0SdA,0,10,/m/0,"['loud']",Loud drums,4,True,False
-gone,5,15,/m/0,"[]",Nobody knows,4,True,False
-whole,2,4,/m/0,"[]",A part of a video,4,False,False
"""


def test_musiccaps(tmp_path):
    folder = make(tmp_path / "in", ["clips/[-0Gj8]-[30-40].wav", "clips/-0SdA.wav"])
    soundfile.write(folder / "clips" / "-whole.wav", np.random.default_rng(0).normal(size=5 * 8000) * 0.1, 8000)
    (folder / MUSICCAPS).write_text(MUSICCAPS_ROWS)
    read = read_folder(folder)
    assert [(entry.name, entry.captions, entry.split, entry.group, entry.attributes["balanced"]) for entry in read.entries] == [
        ("clips/-0SdA.wav", ("Loud drums",), "train", "-0SdA", True),
        ("clips/-whole.wav[2-4]", ("A part of a video",), "train", "-whole", False),
        ("clips/[-0Gj8]-[30-40].wav", ("A calm tune, slow",), "test", "-0Gj8", False),
    ]
    assert read.absent == ("-gone-5",)
    assert read.warnings[0].startswith("1 of 4 clips have no audio in ") and not read.unusable


def test_musiccaps_without_audio(tmp_path):
    folder = make(tmp_path / "in", ["song.wav"])
    (folder / MUSICCAPS).write_text(MUSICCAPS_ROWS)
    with pytest.raises(UserError, match=r"musiccaps-public\.csv lists 4 clips, such as -0Gj8-30, and none has its audio in .*: put it there"):
        read_folder(folder)


def test_fma(tmp_path):
    folder = make(tmp_path, ["fma_small/000/000002.mp3", "fma_small/000/000005.mp3"])
    (folder / "fma_metadata").mkdir()
    heads = [",artist,set,track,track", ",id,split,genre_top,license", "track_id,,,,"]
    rows = ["2,1,training,Hip-Hop,CC BY", "5,1,training,,CC0", "7,2,validation,Rock,"]
    (folder / FMA).write_text("\n".join(heads + rows) + "\n")
    read = read_folder(folder, hash_files=False)
    assert [(entry.name, entry.captions, entry.split, entry.group, entry.licence) for entry in read.entries] == [
        ("fma_small/000/000002.mp3", ("hip-hop music", "a hip-hop track"), "train", "artist 1", "CC BY"),
        ("fma_small/000/000005.mp3", (), "train", "artist 1", "CC0"),
    ]
    assert read.absent == ("000007",)


@pytest.mark.parametrize("zipped", [False, True])
def test_manifests_of_audiocraft(tmp_path, zipped):
    folder = make(tmp_path, ["a.wav", "sub/b.wav"])
    (folder / "a.json").write_text('{"description": "calm", "key": "C"}')
    rows = [{"path": str(folder / "a.wav"), "duration": 1.0, "sample_rate": 8000}, {"path": "sub/b.wav"}, {"path": "sub/c.wav"}]
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    (folder / ("data.jsonl.gz" if zipped else "data.jsonl")).write_bytes(gzip.compress(data) if zipped else data)
    read = read_folder(folder, hash_files=False)
    assert [(entry.name, entry.captions) for entry in read.entries] == [("a.wav", ("calm",)), ("sub/b.wav", ())]
    assert read.absent == ("sub/c.wav",)
