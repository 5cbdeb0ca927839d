"""The page with all measures."""

import json
import re
import struct
import urllib.parse
import zlib
from collections import deque

import numpy as np
import pytest
from tiny_musiclm import tiny_musiclm
from tiny_parts import write_clips, write_metadata

from musiclm_jax import audio
from musiclm_jax.errors import UserError
from musiclm_jax.evaluation import summary
from musiclm_jax.evaluation.adherence import _TRUTH, Generator
from musiclm_jax.evaluation.clips import ClipFile, choose_prompts, read_clips, with_ground_truth
from musiclm_jax.evaluation.html import as_script, document, element, link, png, spectrogram
from musiclm_jax.evaluation.summary import Recorded, evaluate_all


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_musiclm().save_pretrained(folder)
    return str(folder)


def test_what_a_folder_allows_is_on_the_page_and_the_rest_has_its_reason(bundle, tmp_path, monkeypatch):
    data, out = write_clips(tmp_path / "clips", number=6, seconds=3.1), tmp_path / "report"
    write_metadata(data, [{"file_name": f"{i}.wav", "captions": [f"a <low> tone {i}"], "split": "test" if i < 3 else "train"} for i in range(6)])
    done, missing = evaluate_all(bundle, data, out, seconds=3.0, num_captions=2, num_clips=2)
    assert {"codec", "mulan", "fad", "kld", "mcc"} <= set(done) and {"memorization", "adherence"} <= set(missing)
    assert "is too short; at least 15.00 s" in missing["memorization"]
    page = (out / "index.html").read_text(encoding="utf-8")
    assert all(title in page for title in ("Fréchet audio distance", "Codec", "Left out: memorization: "))
    assert page.count("data:image/png") == 4 and "a &lt;low&gt; tone" in page and "<low>" not in page
    players = re.findall(r'<audio controls preload="none" src="([^"]+)"', page)
    assert len(players) == 4 and all((out / urllib.parse.unquote(file)).is_file() for file in players)
    assert len(list((out / "generated").glob("*.wav"))) == 2
    assert json.loads((out / "kld.json").read_text())["report"]["num_pairs"] == 2
    # A second call makes only what is missing, and one with other settings all.
    (out / "mcc.json").write_text("[]")
    called = []
    for name in ("evaluate_fad", "evaluate_mcc", "evaluate_codec"):
        monkeypatch.setattr(summary, name, lambda *args, name=name, call=getattr(summary, name), **options: called.append(name) or call(*args, **options))
    assert evaluate_all(bundle, data, out, seconds=3.0, num_captions=2, num_clips=2)[0] == done and called == ["evaluate_mcc"]
    with pytest.raises(UserError, match="generated otherwise"):
        evaluate_all(bundle, data, out, seconds=3.0, num_captions=2, num_clips=2, seed=1)


def test_a_folder_without_captions(bundle, tmp_path):
    data = write_clips(tmp_path / "clips", number=4, seconds=3.1)
    write_metadata(data, [{"file_name": f"{i}.wav", "split": "test" if i < 2 else "train"} for i in range(4)])
    done, missing = evaluate_all(bundle, data, tmp_path / "out", seconds=3.0)
    assert "codec" in done and "mulan" in missing and missing["generated clips"].endswith("has fewer than 2 held-out clips with a caption")


def test_pictures_are_png():
    gray = np.arange(6, dtype=np.uint8).reshape(2, 3)
    data = png(gray)
    assert data[:8] == b"\x89PNG\r\n\x1a\n" and struct.unpack(">II", data[16:24]) == (3, 2)
    length = struct.unpack(">I", data[33:37])[0]
    lines = np.frombuffer(zlib.decompress(data[41 : 41 + length]), np.uint8).reshape(2, 4)
    np.testing.assert_array_equal(lines[:, 1:], gray)
    assert (lines[:, 0] == 0).all() and zlib.crc32(data[12:29]) == struct.unpack(">I", data[29:33])[0]
    assert spectrogram(np.sin(np.arange(24_000) / 9).astype(np.float32)).startswith('<img alt="spectrogram" src="data:image/png')


def test_texts_are_escaped():
    assert "<h1>a &lt;b&gt;</h1>" in document("a <b>", element("p", "&")) and element("p", "&") == "<p>&amp;</p>"
    assert as_script("</script>") == '"\\u003c/script>"'


def test_clips_that_are_there_stand_for_the_model(tmp_path):
    waves = {name: np.full(500, level, np.float32) for name, level in (("a", 0.1), ("b", 0.2), ("c", 0.3))}
    for name, wave in waves.items():
        wave[::2] *= -1
        audio.write_wav(tmp_path / f"{name}.wav", np.tile(wave, 4))
    model = Recorded({"one": deque([tmp_path / "a.wav", tmp_path / "c.wav"]), "two": deque([tmp_path / "b.wav"])})
    assert isinstance(model, Generator)
    music = model.generate(["one", "two", "one"], seconds=0.05, seed=0)
    assert music.wave.shape == (3, 1200) and music.sample_rate_hz == 24_000
    np.testing.assert_allclose(music.wave.max(axis=1), [0.1, 0.2, 0.3], atol=1e-3)


def test_the_captions_are_those_of_adherence(tmp_path):
    data = write_clips(tmp_path / "clips", number=6)
    attributes = {name: "x" for name in _TRUTH}
    write_metadata(data, [{"file_name": f"{i}.wav", "captions": [f"a tone {i}"], "split": "test", "attributes": attributes} for i in range(6)])
    folder = read_clips(data)
    prompts = choose_prompts(with_ground_truth(folder, _TRUTH), num_captions=4, rng=np.random.default_rng([7, 0]))
    assert [each.caption for each in summary._wanted(folder, 4, 7)] == [prompt.caption for prompt in prompts]


def test_a_part_of_a_file_is_played_as_such(tmp_path):
    clip = tmp_path / "a b.wav"
    assert link(ClipFile(clip), tmp_path / "out" / "index.html") == "../a%20b.wav"
    assert link(ClipFile(clip, 2.5, 4.0), tmp_path / "index.html") == "a%20b.wav#t=2.5,4"
    assert link(ClipFile(clip, None, 4.0), tmp_path / "index.html") == "a%20b.wav#t=0,4"
    (tmp_path / "loop").symlink_to("loop")  # It is replaced.
    assert link(ClipFile(clip), tmp_path / "loop") == "a%20b.wav"
