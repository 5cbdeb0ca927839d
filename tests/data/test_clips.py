"""The clip store: what goes in, what is refused, and what the sources draw."""

import json

import numpy as np
import pytest
import soundfile

from musiclm_jax.data import clips as clips_module
from musiclm_jax.data.clips import ALIGN_SAMPLES, Clip, ClipStore, draw, draw_caption, draw_start, refresh_index, step_rng, wave_source
from musiclm_jax.data.folder import read_folder
from musiclm_jax.errors import UserError
from musiclm_jax.files import read_json

RATE = 24_000


def prepare(folder, directory):
    return clips_module.prepare(read_folder(folder), directory, sample_rate_hz=RATE)


def tone(seconds=1.2, hz=440.0, rate=RATE):
    return 0.5 * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate)) / rate)


def make_folder(folder, clips, *, subtype="PCM_16", rate=RATE):
    """clips: name -> (wave, metadata or None)."""
    folder.mkdir(exist_ok=True)
    with (folder / "metadata.jsonl").open("w") as file:
        for name, (wave, entry) in clips.items():
            if wave is not None:
                soundfile.write(folder / name, wave, rate, subtype=subtype)
            if entry is not None:
                file.write(json.dumps({"file_name": name, **entry}) + "\n")
    return folder


def good(number, **entry):
    return {f"{i:02d}.wav": (tone(1 + i / 8, 200 + 50 * i), {"captions": [f"tone {i}", "a tone"], **entry}) for i in range(number)}


def test_samples_come_back(tmp_path):
    store = prepare(make_folder(tmp_path / "in", good(3, attributes={"tempo": 80})), tmp_path / "store")
    assert store.samples.dtype == np.int16 and len(store.clips) == 3
    for i, clip in enumerate(store.clips):
        assert clip.captions == (f"tone {i}", "a tone") and clip.attributes == {"tempo": 80}
        np.testing.assert_allclose(store.wave(clip), tone(1 + i / 8, 200 + 50 * i), atol=1.1 / 32768)
    np.testing.assert_array_equal(ClipStore.open(tmp_path / "store").samples, store.samples)


def test_a_crop_is_padded_at_the_end_only(tmp_path):
    store = prepare(make_folder(tmp_path / "in", good(2)), tmp_path / "store")
    clip = store.clips[0]
    crop = store.wave(clip, clip.length - 7, 11)
    np.testing.assert_array_equal(crop[:7], store.wave(clip)[-7:])
    np.testing.assert_array_equal(crop[7:], 0)


def test_any_rate_and_channels(tmp_path):
    stereo = np.stack([tone(2, rate=44_100), tone(2, rate=44_100)], axis=1)
    store = prepare(make_folder(tmp_path / "in", {"a.flac": (stereo, {"caption": "a tone"})}, rate=44_100), tmp_path / "store")
    wave = store.wave(store.clips[0])
    assert len(wave) == 2 * RATE
    np.testing.assert_allclose(wave[2400:-2400], tone(2)[2400:-2400], atol=1e-3)


def test_bad_clips_are_skipped_named_and_counted(tmp_path):
    bad = {
        "missing.wav": (None, {"captions": ["x"]}),
        "silent.wav": (np.zeros(2 * RATE), {"captions": ["x"]}),
        "short.wav": (tone(0.5), {"captions": ["x"]}),
        "missing_too.wav": (None, {"captions": ["x"]}),
    }
    folder = make_folder(tmp_path / "in", {**good(40), **bad})
    (folder / "torn.wav").write_bytes((folder / "00.wav").read_bytes()[:20])
    with (folder / "metadata.jsonl").open("a") as file:
        file.write('{"file_name": "torn.wav", "captions": ["x"]}\n')
    with pytest.raises(UserError, match=r"5 of 45 clips .* cannot be used"):
        prepare(folder, tmp_path / "store")
    soundfile.write(folder / "missing_too.wav", tone(), RATE)
    store = prepare(folder, tmp_path / "store")
    assert len(store.clips) == 41 and read_json(tmp_path / "store" / "index.json")["num_skipped"] == 4
    skipped = (tmp_path / "store" / "skipped.log").read_text().splitlines()
    reasons = {"missing": "no such file", "short": "0.5000 s is too short", "silent": "is silent", "torn": "cannot be read as audio"}
    assert len(skipped) == 4 and all(line.startswith(f"{name}.wav: {reason}") for line, (name, reason) in zip(skipped, reasons.items(), strict=True))
    assert sorted(path.name for path in (tmp_path / "store").iterdir()) == ["clips.json", "index.json", "samples.npy", "skipped.log"]


def test_a_failed_preparation_leaves_no_store(tmp_path):
    nan = np.full(2 * RATE, np.nan)
    folder = make_folder(tmp_path / "in", {"a.wav": (nan, {"captions": ["x"]})}, subtype="FLOAT")
    with pytest.raises(UserError, match=r"1 of 1 clips .*a\.wav"):
        prepare(folder, tmp_path / "store")
    assert (tmp_path / "store" / "skipped.log").exists() and not {"index.json", "samples.npy", "clips.json"} & {
        path.name for path in (tmp_path / "store").iterdir()
    }  # fmt: skip


def test_too_many_missing_files_are_an_error_before_anything_is_decoded(tmp_path, monkeypatch):
    folder = make_folder(tmp_path / "in", {**good(4), "missing.wav": (None, {})})
    monkeypatch.setattr(clips_module, "decode_clips", None)
    with pytest.raises(UserError, match="1 of 5 clips .* such as 'missing.wav: no such file; put it there"):
        prepare(folder, tmp_path / "store")
    with pytest.raises(UserError, match="has no clip of split 'train'"):
        prepare(make_folder(tmp_path / "test", good(1, split="test")), tmp_path / "store")


def test_a_folder_without_captions_is_a_store_too(tmp_path):
    store = prepare(make_folder(tmp_path / "in", {"a.wav": (tone(), {}), "b.wav": (tone(), {"caption": "x"})}), tmp_path / "store")
    assert [clip.file_name for clip in store.clips] == ["a.wav", "b.wav"] and [clip.file_name for clip in store.captioned().clips] == ["b.wav"]


def test_renderings_of_a_melody_need_no_caption(tmp_path):
    clips = {f"{i:02d}.wav": (tone(1, 200 + 9 * i), {"melody": f"tune {i // 2}"}) for i in range(12)}
    store = prepare(make_folder(tmp_path / "in", {**clips, "x.wav": (tone(), {"caption": "a tone"})}), tmp_path / "store")
    assert [clip.melody for clip in store.clips] == [f"tune {i // 2}" for i in range(12)] + [None]
    assert [clip.file_name for clip in store.captioned().clips] == ["x.wav"]
    np.testing.assert_allclose(store.captioned().wave(store.clips[-1]), tone(), atol=1.1 / 32768)


def test_the_index_follows_the_texts_without_decoding(tmp_path, monkeypatch):
    folder, clips = tmp_path / "in", good(3, split="train")
    prepare(make_folder(folder, clips), tmp_path / "store")
    samples = (tmp_path / "store" / "samples.npy").stat().st_mtime_ns
    monkeypatch.setattr(clips_module, "decode_clips", None)
    changed = {"caption": "another", "split": "test", "melody": "m", "attributes": {"n": 1}}
    make_folder(folder, clips | {"01.wav": (clips["01.wav"][0], changed)})
    for renew in (lambda: refresh_index(read_folder(folder), tmp_path / "store"), lambda: prepare(folder, tmp_path / "store")):
        clip = renew().clips[1]
        assert (clip.captions, clip.split, clip.melody, clip.attributes) == (("another",), "test", "m", {"n": 1})
    assert (tmp_path / "store" / "samples.npy").stat().st_mtime_ns == samples
    # Of other waves it is no index.
    soundfile.write(folder / "01.wav", tone(), RATE)
    with pytest.raises(UserError, match="has other clips than .* has now: prepare the data again"):
        refresh_index(read_folder(folder), tmp_path / "store")
    with pytest.raises(UserError, match="prepare the data again"):
        refresh_index(read_folder(folder), tmp_path / "nowhere")
    with pytest.raises(ValueError, match="hash_files=True"):
        refresh_index(read_folder(folder, hash_files=False), tmp_path / "store")


def test_wave_source_is_pure_aligned_and_draws_different_clips(tmp_path):
    folder = make_folder(tmp_path / "in", good(5, split="train") | {"t.wav": (tone(), {"caption": "x", "split": "test"})})
    store = prepare(folder, tmp_path / "store")
    encode_text = lambda captions: (np.array([[len(c)] for c in captions]), np.ones((len(captions), 1), bool))  # noqa: E731
    source = wave_source(store, split="train", crop_sec=0.4, batch_size=5, seed=3, encode_text=encode_text)
    first, again, other = source(17), source(17), source(18)
    assert first["wave"].shape == (5, 9600) and first["wave"].dtype == np.float32 and first["text_ids"].shape == (5, 1)
    for name, array in first.items():
        np.testing.assert_array_equal(array, again[name])
    assert not np.array_equal(first["wave"], other["wave"])
    found = set()
    for crop in first["wave"]:
        for i, clip in enumerate(store.split("train")):
            whole = store.wave(clip)
            starts = [s for s in range(0, clip.length - 9600 + 1, 960) if np.array_equal(whole[s : s + 9600], crop)]
            found |= {i} if starts else set()
    assert found == set(range(5))


def test_wave_source_of_an_empty_split(tmp_path):
    store = prepare(make_folder(tmp_path / "in", good(1, split="train")), tmp_path / "store")
    with pytest.raises(UserError, match="no clip of split 'test'"):
        wave_source(store, split="test", crop_sec=1.0, batch_size=1, seed=0)


# ---------------------------------------------------------------------------------------------------------------------- Kinds of captions


BY_KIND = {"short": ["calm piano", " "], "long": ["one", "two ", "three"], "playlist": [], "label": ["piano"]}
MIX = {"short": 2.0, "long": 2.0, "playlist": 1.0, "label": 1.0}


def count_letters(captions):
    return np.array([[len(caption)] for caption in captions]), np.ones((len(captions), 1), bool)


def test_captions_by_kind_are_read_and_kept(tmp_path):
    clips = {
        "a.wav": (tone(), {"captions": BY_KIND}),
        "b.wav": (tone(), {"captions": ["flat"]}),
        "c.wav": (tone(), {"captions": {"short": [""]}, "melody": "c"}),
    }
    store = prepare(make_folder(tmp_path / "in", clips), tmp_path / "store")
    both, flat, none = store.clips
    assert both.captions == ("calm piano", "one", "two", "three", "piano") and both.kinds == ("short", "long", "long", "long", "label")
    assert (flat.captions, flat.kinds) == (("flat",), None) and (none.captions, none.kinds) == ((), None)
    assert ClipStore.open(tmp_path / "store").clips == store.clips
    assert [clip.file_name for clip in store.captioned().clips] == ["a.wav", "b.wav"]


def test_a_damaged_store_says_what_to_do(tmp_path):
    prepare(make_folder(tmp_path / "in", {"a.wav": (tone(), {})}), tmp_path / "store")
    index, samples = tmp_path / "store" / "index.json", tmp_path / "store" / "samples.npy"
    whole = index.read_bytes()
    for text in (b"", b"[]", b"null", b"{}", b"\xff", whole[:-3], whole.replace(b"clips", b"clip")):
        index.write_bytes(text)
        with pytest.raises(UserError, match="index.json is damaged: move .*store away, and prepare the data again$"):
            ClipStore.open(tmp_path / "store")
    index.write_bytes(whole.replace(b'"num_samples": ', b'"num_samples": 1'))
    with pytest.raises(UserError, match=r"samples.npy has shape \[28800\] where its index has \[128800\]: move .*store away"):
        ClipStore.open(tmp_path / "store")
    index.write_bytes(whole)
    for data in (b"", bytes(99), samples.read_bytes()[:-2]):
        samples.write_bytes(data)
        with pytest.raises(UserError, match="samples.npy is damaged: delete it, and the next training makes it again$"):
            ClipStore.open(tmp_path / "store")


def test_an_index_without_kinds_is_what_it_was_before_there_were_any(tmp_path):
    """Byte for byte: steps that read it compare its digest."""
    store = prepare(make_folder(tmp_path / "in", {"a.wav": (tone(), {"captions": ["é", "b"], "split": "train"})}), tmp_path / "store")
    clip = {"file_name": "a.wav", "offset": 0, "length": 28800, "captions": ["é", "b"], "split": "train", "attributes": {}, "melody": None}
    index = {"sample_rate_hz": 24000, "num_samples": 28800, "num_skipped": 0, "clips": [clip]}
    assert json.loads((tmp_path / "store" / "index.json").read_text(encoding="utf-8")) == index
    assert store.clips == (Clip("a.wav", 0, 28800, ("é", "b"), "train", {}),)


@pytest.mark.parametrize(("by_kind", "text_mix"), [(False, None), (False, {}), (False, MIX), (True, None)])
def test_without_a_mix_or_without_kinds_the_draws_are_what_they_were(tmp_path, by_kind, text_mix):
    captions = lambda i: ["x" * (10 * i + n) for n in range(1, 5)]  # noqa: E731
    layout = lambda i: {"short": captions(i)[:1], "long": captions(i)[1:]} if by_kind else captions(i)  # noqa: E731
    clips = {f"{i}.wav": (tone(1 + i / 8), {"captions": layout(i), "split": "train"}) for i in range(5)}
    store = prepare(make_folder(tmp_path / "in", clips), tmp_path / "store")
    source = wave_source(store, split="train", crop_sec=0.4, batch_size=4, seed=3, encode_text=count_letters, text_mix=text_mix)
    for step in range(20):
        rng = step_rng(3, step)
        chosen = [store.clips[i] for i in draw(rng, np.array([float(clip.length) for clip in store.clips]), batch_size=4)]
        waves = [store.wave(clip, draw_start(rng, clip.length, 9600, align=ALIGN_SAMPLES), 9600) for clip in chosen]
        letters = [[len(clip.captions[rng.integers(4)])] for clip in chosen]
        np.testing.assert_array_equal(source(step)["wave"], np.stack(waves))
        np.testing.assert_array_equal(source(step)["text_ids"], letters)


@pytest.mark.parametrize(
    ("kinds", "text_mix", "shares"),
    [
        (("short", "long", "long", "long", "playlist", "label"), MIX, (2 / 6, 2 / 18, 2 / 18, 2 / 18, 1 / 6, 1 / 6)),
        (("short", "long", "long", "label"), MIX, (2 / 5, 1 / 5, 1 / 5, 1 / 5)),  # A kind that it lacks goes to the others.
        (("label", "label"), MIX, (1 / 2, 1 / 2)),
        (("short", "long", "comment"), {"short": 1.0, "long": 3.0, "label": 5.0}, (1 / 4, 3 / 4, 0)),  # A kind that the mix lacks is not drawn.
        (("short", "long"), {"short": 0.0, "long": 3.0}, (0, 1)),
        (None, MIX, (1 / 4,) * 4),
    ],
)
def test_kinds_are_drawn_by_their_weights(kinds, text_mix, shares):
    captions = tuple(str(i) for i in range(len(shares)))
    rng = np.random.default_rng(0)
    drawn = np.array([int(draw_caption(rng, captions, kinds, text_mix)) for _ in range(4000)])
    found = np.bincount(drawn, minlength=len(shares)) / len(drawn)
    np.testing.assert_allclose(found, shares, atol=4 * np.sqrt(0.25 / len(drawn)))
    assert not found[np.array(shares) == 0].any()


def test_a_batch_is_mixed_and_depends_on_its_step_alone(tmp_path):
    clips = {f"{i}.wav": (tone(), {"captions": {"short": ["x"], "long": ["xx", "xxx", "xxxx"]}, "split": "train"}) for i in range(3)}
    store = prepare(make_folder(tmp_path / "in", clips), tmp_path / "store")
    mixed = lambda: wave_source(store, split="train", crop_sec=0.4, batch_size=64, seed=3, encode_text=count_letters, text_mix=MIX)  # noqa: E731
    source, again = mixed(), mixed()
    letters = np.concatenate([source(step)["text_ids"] for step in range(10)])
    assert abs(np.mean(letters == 1) - 1 / 2) < 4 * np.sqrt(0.25 / 640)  # All alike, these would be a quarter.
    np.testing.assert_array_equal(again(7)["text_ids"], source(7)["text_ids"])
    assert not np.array_equal(source(7)["text_ids"], source(8)["text_ids"])


def test_a_mix_that_leaves_a_clip_nothing_is_refused(tmp_path):
    clips = {"a.wav": (tone(), {"captions": ["flat"]}), "b.wav": (tone(), {"captions": {"titel": ["x"], "comment": ["y"]}, "split": "train"})}
    store = prepare(make_folder(tmp_path / "in", clips), tmp_path / "store")
    source = lambda text_mix: wave_source(store, split="train", crop_sec=0.4, batch_size=1, seed=0, text_mix=text_mix)  # noqa: E731
    for text_mix in (MIX, {"titel": 0.0, "short": 1.0}):
        with pytest.raises(UserError, match=r"^captions of b\.wav are all of kind comment or titel, to which text_mix=.* gives no weight: add one there$"):
            source(text_mix)
    source({"comment": 0.1})
