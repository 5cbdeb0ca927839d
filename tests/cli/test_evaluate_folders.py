"""`musiclm evaluate fad`, `kld`, `mcc` and what compares models with folders, from the command line to the report."""

import json

import pytest
from run_command import run
from tiny_parts import write_clips


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("clips")
    real, made = (write_clips(root / name, number=3, seconds=3.2) for name in ("real", "made"))
    (made / "metadata.jsonl").unlink()
    return real, made


def test_fad(tiny_bundle, folders, tmp_path, capsys):
    options = ("--embedding", "codec", "--model", tiny_bundle, "--seconds", "1", "--clips", "2")
    status, out, err = run("evaluate", "fad", *folders, *options, "--save-reference", tmp_path / "real.npz", "--out", tmp_path / "fad.json", capsys=capsys)
    assert status == 0 and "generated to reference (FAD)" in out and "embedding generated clips 1 to 2 of 2" in err
    report = json.loads((tmp_path / "fad.json").read_text())
    assert f"{report['fad']:.3f}" in out and report["generated"]["num_clips"] == 2
    assert run("evaluate", "fad", tmp_path / "real.npz", folders[1], *options, capsys=capsys)[1] == out


def test_kld_and_mcc(tiny_bundle, folders, tmp_path, capsys):
    status, out, _ = run("evaluate", "kld", *folders, "--out", tmp_path / "kld.json", capsys=capsys)
    assert status == 0 and "50 classes by musicnn, 3 pairs" in out
    assert json.loads((tmp_path / "kld.json").read_text())["num_pairs"] == 3
    status, out, _ = run("evaluate", "mcc", *folders, "--model", tiny_bundle, capsys=capsys)
    assert status == 0 and "generated clips" in out and "real clips" in out
    assert "generated clips" not in run("evaluate", "mcc", folders[0], "--model", tiny_bundle, capsys=capsys)[1]


def test_memorization(tiny_bundle, folders, tmp_path, capsys):
    options = ("--model", tiny_bundle, "--prompt", "0", "--clips", "2", "--out", tmp_path / "m.json")
    status, out, err = run("evaluate", "memorization", write_clips(tmp_path / "long", number=3, seconds=5.1), *options, capsys=capsys)
    assert status == 0 and "training clips  0 (0 s)" in out and "continuing 2 training clips after 0 tokens" in err
    assert json.loads((tmp_path / "m.json").read_text())["prompt_tokens"] == [0]
    status, _, err = run("evaluate", "memorization", folders[0], *options, capsys=capsys)
    assert status == 2 and "none of the 2 training clips can be used" in err


def test_diversity(tiny_bundle, tmp_path, capsys):
    command = ("evaluate", "diversity", "a calm piano melody", "fast drums and bass", "--draws", "2", "--seconds", "3", "--model", tiny_bundle)
    status, out, err = run(*command, "--out", tmp_path / "diversity.json", capsys=capsys)
    assert status == 0 and "2 prompts, 2 clips of 3 s" in out and "drawing 4 clips of prompt 2 of 2" in err
    report = json.loads((tmp_path / "diversity.json").read_text())
    assert f"{report['results']['spectra, dB']['anew']:.1f} [" in out and report["prompts"] == ["a calm piano melody", "fast drums and bass"]
    status, _, err = run("evaluate", "diversity", "a calm piano melody", "--model", tiny_bundle, capsys=capsys)
    assert status == 2 and "give two or more that differ" in err.splitlines()[-1]


def test_copies(tiny_bundle, folders, tmp_path, capsys):
    index = tmp_path / "index.npz"
    status, out, _ = run("evaluate", "index", folders[0], "--model", tiny_bundle, "--out", index, capsys=capsys)
    assert status == 0 and "3 clips, 0.0 hours" in out
    status, out, _ = run("evaluate", "copies", folders[1], index, "--model", tiny_bundle, "--out", tmp_path / "copies.json", capsys=capsys)
    assert status == 0 and "Closest passages of 3 clips among 3 clips" in out
    assert [clip["share"] for clip in json.loads((tmp_path / "copies.json").read_text())["clips"]] == [1, 1, 1]
    music = ("generate", "a low tone", "a tone", "--seconds", "0.4", "--model", tiny_bundle, "--out", tmp_path / "music.wav", "--check-copies")
    status, out, _ = run(*music, index, capsys=capsys)
    lines = [line for line in out.splitlines() if "  closest to " in line]
    assert status == 0 and len(lines) == 2 and "% of 10 tokens from 0.0 s on are equal (clips of the index" in lines[1]
    status, _, err = run(*music, tmp_path / "none.npz", capsys=capsys)
    assert status == 2 and err.splitlines()[-1].endswith("none.npz: there is no such file; make an index with `musiclm evaluate index`")
    status, _, err = run("generate", "piano", "--out", tmp_path / "music.wav", "--check-copies", index, capsys=capsys)
    assert status == 2 and "make an index with that model" in err.splitlines()[-1]


def test_musiccaps(tiny_bundle, folders, tmp_path, capsys):
    table, out = tmp_path / "musiccaps-public.csv", tmp_path / "out"
    rows = "".join(f'{i},0,10,"a low, slow tone",True,True\n' for i in range(3))
    table.write_text(f"ytid,start_s,end_s,caption,is_balanced_subset,is_audioset_eval\n{rows}")
    options = ("--out", out, "--model", tiny_bundle, "--clips", "2", "--seconds", "3.2", "--batch-size", "1")
    status, text, err = run("evaluate", "musiccaps", table, folders[1], *options, capsys=capsys)
    assert status == 0 and "generating clips 2 to 2 of 2" in err
    assert len({(out / "generated" / f"{i}-0.wav").read_bytes() for i in range(2)}) == 2  # Of one caption.
    assert text.startswith("MusicCaps, 2 of 2 captions of the subset 'balanced', 3.2 s each") and "mulan@" in text and (out / "musiccaps.md").is_file()
    for more, message in [
        (["--judge", "musicnn"], "judge 'musicnn': choose one of mulan, clap"),
        (["--embedding", "vggish="], "vggish"),
        (["--seconds", "2"], "seconds=2: choose at least 2.98 s"),
    ]:
        status, _, err = run("evaluate", "musiccaps", table, folders[1], "--out", tmp_path / "other", "--model", tiny_bundle, *more, capsys=capsys)
        assert status == 2 and message in err.splitlines()[-1], more


def test_listening(folders, tmp_path, capsys):
    status, out, _ = run("evaluate", "listening", *folders, "--out", tmp_path / "page.html", capsys=capsys)
    assert status == 0 and out.endswith("page.html: 3 pairs; open it in a browser\n")
    answers = tmp_path / "answers.json"
    answers.write_text('{"format": 1, "answers": [{"first": "real", "second": "made", "rating": -1}]}')
    status, out, _ = run("evaluate", "listening", "--score", answers, capsys=capsys)
    assert status == 0 and "made and real  1        0 : 1" in out
    status, _, err = run("evaluate", "listening", folders[0], capsys=capsys)
    assert status == 2 and "name two folders and --out FILE.html" in err


def test_mistakes(folders, tmp_path, capsys):
    for arguments, names in [
        (["fad", *folders, "--embedding", "drill"], "embedding 'drill': choose one of musicnn"),
        (["fad", *folders, "--seconds", "1"], "seconds=1: choose at least 2.98 s"),
        (["fad", *folders, "--clips", "0"], "clips"),
        (["fad", *folders, "--embedding", "mulan", "--model", tmp_path / "none"], "none: no such folder"),
        (["fad", *folders, "--weights", tmp_path], "musicnn has no --weights"),
        (["fad", folders[0], folders[1] / "0.wav"], "0.wav: is a file, expected a folder of generated clips"),
        (["fad", folders[1] / "0.wav", folders[0]], "0.wav: is neither a folder of clips nor statistics"),
        (["fad", *folders, "--save-reference", tmp_path / "none" / "a.npz"], "there is no folder"),
        (["fad", *folders, "--out", "/dev/null"], "'/dev/null' is a folder or a device; name a file"),
        (["mcc", *folders, "--out", tmp_path], "is a folder or a device"),
        (["kld", folders[0], tmp_path], "contains no audio"),
        (["kld", *folders, "--classifier", "thief"], "classifier 'thief': choose one of musicnn"),
        (["mcc", folders[1]], "0 of 3 clips have a caption"),
        (["mcc", *folders, "--judge", "musicnn"], "judge 'musicnn': choose one of mulan, clap"),
    ]:
        status, _, err = run("evaluate", *arguments, capsys=capsys)
        assert status == 2 and names in err and err.splitlines()[-1].startswith("musiclm: "), arguments
