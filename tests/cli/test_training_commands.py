"""`musiclm fit` and `musiclm train`: mistakes, dry runs, plans, and what a step prints."""

from pathlib import Path

import pytest
from run_command import run
from tiny_parts import write_clips


@pytest.mark.parametrize(
    "arguments, names",
    [
        (["no/such/folder"], "no/such/folder"),
        (["clips", "--size", "huge"], "huge"),
        (["clips", "--gin.SEMANTIC_STEPZ=3"], "SEMANTIC_STEPS"),
        (["clips", "--gin.SEMANTIC_STEPS"], "SEMANTIC_STEPS"),
        (["clips", "--gin_file", "mine.gin"], "mine.gin"),
        (["clips", "--gin_file", ""], "--gin_file"),
        (["clips", "--speed", "3"], "--speed"),
        (["clips", "--gin.MeshConfig.data=64"], "does not tile the"),
    ],
)
def test_fit_mistakes(arguments, names, tmp_path, capsys, monkeypatch):
    pytest.importorskip("gin")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "clips").mkdir()
    size = [] if "--size" in arguments else ["--size", "test"]
    status, _, err = run("fit", *arguments, *size, "--workdir", "run", capsys=capsys)
    assert status == 2 and names in err and err.count("\n") == 1, err


def test_dry_run_needs_no_data_and_leaves_nothing(tmp_path, capsys, monkeypatch):
    pytest.importorskip("gin")
    monkeypatch.chdir(tmp_path)
    Path("mine.gin").write_text("loop.TrainConfig.seed = 3\nsemantic/stage_part.StagePart.batch_size = 12\n")
    options = ["--size", "test", "--gin_file", "mine.gin", "--dry_run", "--shapes", "--gin.MeshConfig.data=2", "--gin.MeshConfig.fsdp=3"]
    status, out, err = run("train", "semantic", *options, capsys=capsys)
    assert (status, err) == (0, "") and "data=2, fsdp=3, tensor=1: devices 6" in out and "12 x 2 s" in out
    assert [path.name for path in tmp_path.iterdir()] == ["mine.gin"]


@pytest.mark.parametrize(
    "arguments, names",
    [
        (["semantic"], "DATA"),
        (["semantic", "clips"], "--workdir"),
        (["semantic", "", "--workdir", "run"], "DATA"),
        (["semantic", "--workdir", "run", "--gin.SEMANTIC_STEPS=3"], "DATA"),
        (["rvq", "--dry_run"], "rvq"),
        (["semantics", "--dry_run"], "semantics"),
        (["semantic", "--dry_run", "--gin.SEMANTIC_STEPZ=3"], "SEMANTIC_STEPS"),
        (["semantic", "--dry_run", "--speed", "3"], "--speed"),
        (["semantic", "--shapes"], "--dry_run"),
        (["kmeans", "clips", "--workdir", "run", "--profile"], "kmeans is not a training"),
        (["semantic", "--dry_run", "--gin.TrainConfig.trackers=('tensorbord',)"], "choose of 'tensorboard', 'wandb'"),
    ],
)
def test_train_mistakes(arguments, names, tmp_path, capsys, monkeypatch):
    pytest.importorskip("gin")
    monkeypatch.chdir(tmp_path)
    status, out, err = run("train", *arguments, "--size", "test", capsys=capsys)
    assert status == 2 and names in err and err.count("\n") == 1 and out == "" and not list(tmp_path.iterdir()), err


def test_a_plan_is_printed_and_nothing_is_written(tmp_path, capsys, monkeypatch):
    pytest.importorskip("gin")
    monkeypatch.chdir(tmp_path)
    write_clips(tmp_path / "clips", number=2)
    status, out, err = run("fit", "clips", "--size", "test", "--workdir", "run", "--plan", capsys=capsys)
    assert status == 0, err
    assert out.splitlines()[:2] == ["prepare: new", "codec: new"] and out.splitlines()[-1] == "export: new"
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["hashes.json"]
    status, out, _ = run("train", "kmeans", "clips", "--size", "test", "--workdir", "run", "--plan", capsys=capsys)
    assert out.splitlines() == ["prepare: new", "w2v_bert: new", "kmeans: new"]
    status, out, err = run("train", "soundstream", "clips", "--size", "test", "--workdir", "run", "--plan", capsys=capsys)
    assert out.splitlines() == ["prepare: new", "codec: new"] and "the step soundstream is called codec now" in err


def test_a_step_prints_its_results_once(tmp_path, capsys, monkeypatch):
    pytest.importorskip("gin")
    monkeypatch.chdir(tmp_path)
    write_clips(tmp_path / "clips", number=2)
    status, out, err = run("train", "prepare", "clips", "--size", "test", "--workdir", "run", capsys=capsys)
    assert status == 0 and out.splitlines()[-1].startswith("prepare: finished in") and out.count("captioned") == 1, (out, err)
