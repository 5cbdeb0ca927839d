"""The texts of a folder: encodings, line ends, and what is said of a line that is wrong."""

import json

import pytest

from musiclm_jax.data.metadata import read_captions, read_lines, read_sidecar, read_text
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
        ('{"file_name": "a.wav", "caption": "x", "split": "dev"}', "split is 'dev', expected 'train' or 'test'"),
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
