"""The texts of a folder: encodings, line ends, and what is said of a line that is wrong."""

import json

import pytest

from musiclm_jax.data.metadata import read_captions, read_json_sidecar, read_lines, read_sidecar
from musiclm_jax.data.text_files import read_text
from musiclm_jax.errors import UserError

TEXT = "the singer’s calm tune, déjà vu"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "cp1252"])
def test_encodings(tmp_path, encoding):
    path = tmp_path / "a.txt"
    path.write_bytes(f"{TEXT}\r\n\r\nfast\r\n".encode(encoding))
    assert read_sidecar(path) == ((TEXT, "fast"), encoding == "cp1252")
    path.write_bytes((json.dumps({"file_name": "a.wav", "caption": TEXT}, ensure_ascii=False) + "\r\n").encode(encoding))
    lines, warnings = read_lines(path)
    assert [line.captions for line in lines] == [(TEXT,)]
    assert ["Windows-1252" in warning for warning in warnings] == [True] * (encoding == "cp1252")


def test_utf_16_of_either_order_has_its_mark_and_is_told_without_it(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xfe\xff" + TEXT.encode("utf-16-be"))
    assert read_text(path) == (TEXT, False)
    for data in ("calm".encode("utf-16-le"), b"\xff\xfea", b"caf\x81", b"\x00\x01\x02"):
        path.write_bytes(data)
        with pytest.raises(UserError, match=r"a\.txt is not a text in UTF-8.*save it as UTF-8"):
            read_text(path)


@pytest.mark.parametrize("data", [b"", b"\n \n", b"\xef\xbb\xbf", b"\xff\xfe"])
def test_empty_texts(tmp_path, data):
    path = tmp_path / "a.txt"
    path.write_bytes(data)
    assert read_sidecar(path) == ((), False) and read_lines(path) == ([], [])


def test_lines_end_at_the_line_feed_alone(tmp_path):
    path = tmp_path / "metadata.jsonl"
    captions = [f"a calm{separator}piano" for separator in ("\u2028", "\u2029", "\u0085", "\x0b", "\x1c")]
    lines = [json.dumps({"file_name": f"{i}.wav", "caption": caption}, ensure_ascii=False) for i, caption in enumerate(captions)]
    path.write_bytes(("\r\n".join(lines).replace("\\u000b", "\x0b")).encode())
    with pytest.raises(UserError, match="line 4 is not a JSON object"):  # Raw control characters are no JSON.
        read_lines(path)
    path.write_bytes("\r\n".join(lines).encode())
    assert [(line.number, *line.captions) for line in read_lines(path)[0]] == list(enumerate(captions, start=1))
    path.write_bytes(f"{captions[0]}\n".encode())
    assert read_sidecar(path)[0] == (captions[0],)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2 is not a JSON object"),
        ("[1]", "line 2 is not a JSON object"),
        ('"a.wav"', "line 2 is not a JSON object"),
        ("[" * 100_000, "line 2 is not a JSON object"),
        ('{"captions": ["x"]}', "line 2 is not a JSON object"),
        ('{"file_name": 3}', "line 2 is not a JSON object"),
        ('{"file_name": " "}', "line 2: file_name is ' ', expected the name"),
        ('{"file_name": "a\\u0000.wav"}', "line 2: file_name is .*, expected the name"),
        ('{"file_name": "a.wav", "captions": [3]}', "line 2: captions is .*, expected a list of strings, or an object from kinds"),
        ('{"file_name": "a.wav", "captions": 3}', "expected a list of strings, or an object from kinds"),
        ('{"file_name": "a.wav", "captions": {"short": "x"}}', "expected a list of strings, or an object from kinds"),
        ('{"file_name": "a.wav", "captions": {"short": ["x"], "long": [["y"]]}}', "expected a list of strings, or an object from kinds"),
        ('{"file_name": "a.wav", "captions": null}', "expected a list of strings, or an object from kinds"),
        ('{"file_name": "a.wav", "caption": "\\ud83d"}', "line 2: it has half a surrogate pair"),
        ('{"file_name": "a.wav", "caption": "x", "split": "night"}', "split is 'night', expected 'train' or 'test'"),
        ('{"file_name": "a.wav", "caption": "x", "split": 1}', "split is 1, expected 'train' or 'test'"),
        ('{"file_name": "a.wav", "caption": "x", "split": ["test"]}', "expected 'train' or 'test'"),
        ('{"file_name": "a.wav", "attributes": "fast"}', "attributes is 'fast', expected an object"),
        ('{"file_name": "a.wav", "melody": 3}', "melody is 3, expected a string"),
        ('{"file_name": "a.wav", "melody": ""}', "melody is '', expected a string"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, message):
    path = tmp_path / "metadata.jsonl"
    path.write_text(f"\n{line}\n")
    with pytest.raises(UserError, match=message) as error:
        read_lines(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_what_is_no_file_is_named(tmp_path):
    (tmp_path / "metadata.jsonl").mkdir()
    with pytest.raises(UserError, match=r"metadata\.jsonl is not a file.*: move that folder away"):
        read_lines(tmp_path / "metadata.jsonl")
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(UserError, match="link is not a file"):
        read_text(tmp_path / "link")


def test_keys_that_nothing_reads_are_named_once(tmp_path):
    path = tmp_path / "metadata.jsonl"
    path.write_text('{"file_name": "a.wav", "txt": 1}\n{"file_name": "b.wav", "txt": 2, "captions": ["x"], "caption": "y", "split": null}')
    lines, warnings = read_lines(path)
    assert [line.captions for line in lines] == [(), ("x",)]
    assert len(warnings) == 1 and "'txt' (2), 'caption' (1); the known ones are file_name," in warnings[0]


def test_captions_may_have_kinds():
    assert read_captions({"caption": " x "}) == (("x",), None)
    assert read_captions({"captions": {"short": ["x", " "], "long": ["y", "z"], "none": []}}) == (("x", "y", "z"), ("short", "long", "long"))
    assert read_captions({"captions": {"short": [""]}}) == ((), None) == read_captions({})


def test_csv_of_audiofolder(tmp_path):
    path = tmp_path / "metadata.csv"
    path.write_text('file_name,text,split,start_time,end_time\na.wav,"calm, slow",validation,,\nb.wav,"two\nlines",train,1.5,3\nc.wav,"[""x"", ""y""]",,,\n\n')
    lines, warnings = read_lines(path)
    assert warnings == []
    assert [(line.number, line.file_name, line.captions, line.split) for line in lines] == [
        (2, "a.wav", ("calm, slow",), "test"),
        (4, "b.wav", ("two\nlines",), "train"),
        (5, "c.wav", ("x", "y"), None),
    ]
    assert [(line.start_sec, line.end_sec) for line in lines] == [(None, None), (1.5, 3.0), (None, None)]
    path.write_text("audio;caption\na.wav;calm\n")
    with pytest.raises(UserError, match=r"metadata\.csv has no column file_name, but audio;caption: name the columns file_name, text, "):
        read_lines(path)
    path.write_text("file_name,text\na.wav,calm, slow\n")
    with pytest.raises(UserError, match=r"metadata\.csv line 2 has 3 cells where its first line has 2: put texts with commas in quotes"):
        read_lines(path)
    path.write_text('file_name,text\na.wav,"calm\n')
    with pytest.raises(UserError, match=r"metadata\.csv line 2 is not CSV \(unexpected end of data\)"):
        read_lines(path)


def test_parquet_of_audiofolder(tmp_path):
    pyarrow = pytest.importorskip("pyarrow", reason="the extra `data` is not installed")
    from pyarrow import parquet

    path = tmp_path / "metadata.parquet"
    rows = [{"file_name": "a.wav", "captions": ["calm", "slow"], "start_sec": 2.0}, {"file_name": "b.wav", "captions": ["fast"], "start_sec": None}]
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    lines, _ = read_lines(path)
    assert [(line.number, line.file_name, line.captions, line.start_sec) for line in lines] == [
        (1, "a.wav", ("calm", "slow"), 2.0),
        (2, "b.wav", ("fast",), None),
    ]
    path.write_bytes(b"PAR1 no table")
    with pytest.raises(UserError, match=r"metadata\.parquet is not a Parquet file"):
        read_lines(path)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"start_sec": -1}, "start_sec is -1, expected seconds"),
        ({"start_time": "soon"}, "start_time is 'soon', expected seconds"),
        ({"end_sec": float("inf")}, "end_sec is inf, expected seconds"),
        ({"end_sec": True}, "end_sec is True, expected seconds"),
        ({"start_sec": 3, "end_sec": 3}, "its part from 3 s to 3 s is empty"),
        ({"group": 3}, "group is 3, expected a string"),
        ({"license": ""}, "license is '', expected a string"),
    ],
)
def test_parts_groups_and_licences(tmp_path, fields, message):
    path = tmp_path / "metadata.jsonl"
    path.write_text(json.dumps({"file_name": "a.wav", "start_sec": 0, "end_time": 2.5, "group": "album", "license": "CC0"}) + "\n")
    (line,), warnings = read_lines(path)
    assert (line.start_sec, line.end_sec, line.group, line.licence, warnings) == (0.0, 2.5, "album", "CC0", [])
    path.write_text(json.dumps({"file_name": "a.wav"} | fields) + "\n")
    with pytest.raises(UserError, match=message):
        read_lines(path)


def test_a_json_file_beside_a_clip(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{"caption": "calm", "group": "album"}')
    line = read_json_sidecar(path, "a.wav")
    assert (line.file_name, line.captions, line.group) == ("a.wav", ("calm",), "album")
    for text in ("[1]", "{", ""):
        path.write_text(text)
        with pytest.raises(UserError, match=r"a\.json is not a JSON object with captions"):
            read_json_sidecar(path, "a.wav")
