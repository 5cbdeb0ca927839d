"""`fit`: its order and memory on steps of a few bytes, then the real thing on five tiny clips, killed in the middle."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

import musiclm_jax
from musiclm_jax.cli.gin_config import load_config
from musiclm_jax.errors import UserError
from musiclm_jax.musiclm import MusicLM
from musiclm_jax.parts import fit as fit_module
from musiclm_jax.parts import steps
from musiclm_jax.parts.fit import fit, run_step
from musiclm_jax.parts.steps import STEPS, FitConfig, Run, Step
from musiclm_jax.records import read_json

# ---------------------------------------------------------------------------------------------------------------------- The machinery


@pytest.fixture
def ran(monkeypatch):
    """Three steps a -> b -> export whose outputs are short texts; the list of those that ran. b's output forgets the sign of the seed."""
    log = []

    def step(name, needs, content, **more):
        def run(run, folder):
            log.append(name)
            read = "".join((run.folder(need) / "out").read_text() for need in needs)
            (folder / "out").write_text(read + content(run.config))
            return {"length": len(read)}

        return Step(name, f"doing {name}", run, needs, ("out",), **more)

    steps = [
        step("a", (), lambda config: "a", config=lambda config: config.encode_batch_size, reads_data=True),
        step("b", ("a",), lambda config: f"b{abs(config.seed)}", config=lambda config: config.seed),
        step("export", ("b",), lambda config: "c", config=lambda config: 0),
    ]
    monkeypatch.setattr(fit_module, "STEPS", {each.name: each for each in steps})
    return log


@pytest.fixture
def places(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "metadata.jsonl").write_text("x")
    return tmp_path / "data", tmp_path / "work"


def test_each_step_runs_once_and_again_where_something_changed(ran, places, capsys):
    data, workdir = places
    again = lambda **changes: (ran.clear(), fit(data, config=FitConfig(**changes), workdir=workdir), list(ran))[2]  # noqa: E731
    assert fit(data, config=FitConfig(), workdir=workdir) == workdir / "export" / "bundle" and ran == ["a", "b", "export"]
    assert "[2/3] b: doing b" in capsys.readouterr().out
    assert again() == []
    assert "[2/3] b: done" in capsys.readouterr().out
    assert again(seed=2) == ["b", "export"]  # Its config, hence its output.
    assert again(seed=-2) == ["b"]  # Its config, but not its output.
    assert again(seed=-2, encode_batch_size=3) == ["a"]
    (data / "metadata.jsonl").write_text("y")
    assert again(seed=-2, encode_batch_size=3) == ["a"]
    (workdir / "b" / "out").unlink()
    assert again(seed=-2, encode_batch_size=3) == ["b"]


def test_what_was_begun_with_other_inputs_is_forgotten(ran, places):
    data, workdir = places
    fit(data, config=FitConfig(), workdir=workdir)
    (workdir / "export" / "checkpoint").write_text("of the old b")
    fit(data, config=FitConfig(), workdir=workdir)
    assert (workdir / "export" / "checkpoint").exists()
    fit(data, config=FitConfig(seed=2), workdir=workdir)
    assert not (workdir / "export" / "checkpoint").exists()


def test_an_interrupted_step_runs_again_and_its_time_counts(ran, places, monkeypatch):
    data, workdir = places

    def interrupted(run, folder):
        time.sleep(0.11)
        raise KeyboardInterrupt

    whole = fit_module.STEPS["b"]
    monkeypatch.setitem(fit_module.STEPS, "b", Step("b", "", interrupted, ("a",), ("out",), whole.config))
    with pytest.raises(KeyboardInterrupt):
        fit(data, config=FitConfig(), workdir=workdir)
    monkeypatch.setitem(fit_module.STEPS, "b", whole)
    fit(data, config=FitConfig(), workdir=workdir)
    assert ran == ["a", "b", "export"] and 0.1 <= read_json(workdir / "b" / "done.json")["seconds"] < 1


def test_one_step_wants_the_steps_before_it(ran, places):
    data, workdir = places
    with pytest.raises(UserError, match="step 'c': choose one of a, b, export"):
        run_step("c", data, config=FitConfig(), workdir=workdir)
    with pytest.raises(UserError, match="export needs the result of b, .* run `musiclm train b`"):
        run_step("export", data, config=FitConfig(), workdir=workdir)
    assert ran == []
    # But for the step that reads the data, which decides nothing.
    assert run_step("b", data, config=FitConfig(), workdir=workdir) == {"length": 1} and ran == ["a", "b"]
    with pytest.raises(UserError, match="b needs a, whose config or data changed since it ran"):
        run_step("b", data, config=FitConfig(encode_batch_size=7), workdir=workdir)
    with pytest.raises(UserError, match="is not a folder"):
        run_step("a", data / "nowhere", config=FitConfig(), workdir=workdir)


def test_a_step_beside_fit_runs_only_when_asked_for(ran, places, monkeypatch):
    data, workdir = places
    beside = dataclasses.replace(fit_module.STEPS["b"], name="beside", in_fit=False)
    monkeypatch.setitem(fit_module.STEPS, "beside", beside)
    fit(data, config=FitConfig(), workdir=workdir)
    assert ran == ["a", "b", "export"]
    assert run_step("beside", data, config=FitConfig(), workdir=workdir) == {"length": 1} and (workdir / "beside" / "done.json").exists()


# ---------------------------------------------------------------------------------------------------------------------- The mix of MuLan's texts


def test_a_mix_belongs_to_mulan_and_its_rerankers_and_none_leaves_trainings_done():
    plain, mixed = FitConfig(), FitConfig(text_mix=(("short", 2.0),))
    training = plain.mulan
    parts = [plain.task("mulan"), training.batch_size, training.crop_sec, training.loop.num_steps, training.loop.seed]
    assert STEPS["mulan"].config(plain) == parts and STEPS["mulan"].config(mixed) == [*parts, (("short", 2.0),)]
    for name, step in STEPS.items():
        assert (step.config(plain) == step.config(mixed)) == (name not in ("mulan", "reranker", "semantic_reranker")), name


def test_mulan_learns_from_the_kinds_of_the_mix(tmp_path, monkeypatch):
    rng, lines = np.random.default_rng(0), []
    (tmp_path / "data").mkdir()
    for i in range(3):
        soundfile.write(tmp_path / "data" / f"{i}.wav", 0.3 * rng.standard_normal(48_000), 24_000)
        lines.append(json.dumps({"file_name": f"{i}.wav", "captions": {"long": ["a low tone", "a high tone"], "label": ["noise"]}}))
    (tmp_path / "data" / "metadata.jsonl").write_text("\n".join(lines))
    sources = {}
    monkeypatch.setattr(steps, "_train", lambda run, folder, name, source, **_: sources.update({name: source}) or ({}, {}))
    texts = {}
    for text_mix in ((), (("label", 1.0),)):
        config = dataclasses.replace(load_config("test"), text_mix=text_mix)
        run = Run(config=config, data=tmp_path / "data", workdir=tmp_path / "work")
        run.folder("prepare").mkdir(parents=True, exist_ok=True)
        STEPS["prepare"].run(run, run.folder("prepare"))
        STEPS["mulan"].run(run, run.folder("mulan"))
        source = sources["mulan"]("train", 0)
        texts[text_mix] = {tuple(ids[mask]) for step in range(20) for ids, mask in zip(source(step)["text_ids"], source(step)["text_mask"], strict=True)}
    noise = run.text.encode(["noise"], max_tokens=config.model.mulan.text.max_tokens)
    assert texts[(("label", 1.0),)] == {tuple(noise[0][0][noise[1][0]])} and len(texts[()]) == 3


# ---------------------------------------------------------------------------------------------------------------------- The real thing


PROGRAM = """
    import sys
    from musiclm_jax.parts.fit import fit
    from musiclm_jax.cli.gin_config import load_config

    data, workdir, *runs = sys.argv[1:]
    for bindings in runs:
        print("RUN", flush=True)
        fit(data, config=load_config("test", bindings=bindings.split()), workdir=workdir)
"""


def start(folder: Path, *runs: str) -> subprocess.Popen:
    """`fit` in a process of its own: it is killed, and compiles with few optimizations, which would take longer than they save."""
    flags = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    cache = {"JAX_COMPILATION_CACHE_DIR": str(folder / "cache"), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1"}
    env = {**os.environ, **cache, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(Path(musiclm_jax.__file__).parents[1])}
    command = [sys.executable, "-c", textwrap.dedent(PROGRAM), str(folder / "data"), str(folder / "work"), *runs]
    with (folder / "out").open("a") as out:
        return subprocess.Popen(command, env=env, stdout=out, stderr=subprocess.STDOUT)


def make_clips(folder: Path) -> None:
    folder.mkdir()
    rng = np.random.default_rng(0)
    with (folder / "metadata.jsonl").open("w") as metadata:
        for i, word in enumerate(("low", "lower", "high", "higher", "middle")):
            n = 48_000 + 7001 * i
            wave = 0.3 * np.sin(np.arange(n) * 0.02 * (i + 1)) + 0.05 * rng.standard_normal(n)
            soundfile.write(folder / f"{i}.wav", wave, 24_000)
            metadata.write(json.dumps({"file_name": f"{i}.wav", "captions": [f"a {word} tone", "noise"]}) + "\n")


def test_five_clips_become_a_bundle_though_killed_on_the_way(tmp_path):
    make_clips(tmp_path / "data")
    process = start(tmp_path, "")
    deadline = time.monotonic() + 1800
    while not (tmp_path / "work" / "w2v_bert" / "checkpoints" / "2").exists():
        assert process.poll() is None and time.monotonic() < deadline, (tmp_path / "out").read_text()[-3000:]
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process = start(tmp_path, "", "FINE_STEPS=6")
    assert process.wait(timeout=1800) == 0, (tmp_path / "out").read_text()[-3000:]
    _, killed, resumed, longer = (tmp_path / "out").read_text().split("RUN\n")
    assert "[2/14] soundstream: finished" in killed and "w2v_bert: finished" not in killed
    assert "[2/14] soundstream: done" in resumed and "w2v_bert: 0.0" in resumed and "[14/14] export: finished" in resumed
    assert longer.count(": done\n") == 12  # All but the two that changed.
    assert "from step 4 to step 6" in longer and "[14/14] export: finished" in longer

    # The bundle works, and its card says how it came about.
    config = load_config("test", bindings=["FINE_STEPS=6"])
    bundle = fit(tmp_path / "data", config=config, workdir=tmp_path / "work")
    model = MusicLM.from_pretrained(bundle)
    assert model.config == config.model
    card = (bundle / "README.md").read_text()
    assert all(word in card for word in ("5 captioned clips", "| fine |", "| 6 |", "eval_mel_distance", "eval_bigram", "recall_chance", "text_perplexity_1"))
    load = lambda step, kind: np.load(tmp_path / "work" / step / f"{kind}.npy")  # noqa: E731
    semantic, acoustic, texts = load("semantic_tokens", "semantic"), load("acoustic_tokens", "acoustic"), load("rvq", "texts")
    assert acoustic.shape == (2 * len(semantic), 3)
    # Tokens of the store are what the bundle itself gives for the clip.
    wave = soundfile.read(tmp_path / "data" / "0.wav", dtype="float32")[0][None]
    np.testing.assert_array_equal(acoustic[:100], np.asarray(model.acoustic.encode(wave))[0])
    np.testing.assert_array_equal(semantic[:50], np.asarray(model.semantic.encode(wave))[0])
    np.testing.assert_array_equal(texts[:2], np.asarray(model.mulan.text_tokens(["a low tone", "noise"])))
    # The rerankers started from MuLan, and went on.
    for reranker in (model.reranker, model.semantic_reranker):
        moved = np.abs(np.asarray(reranker.embed_text(["a low tone"]) - model.mulan.embed_text(["a low tone"]))).max()
        assert 0 < moved < 0.5
    # A token that sounds in no clip has the mean spectrum of all; the others have their own.
    spectra, used = model.semantic_reranker.variables["spectra"], np.unique(semantic)
    assert spectra.shape == (7, model.config.mulan.mel.num_mels) and len(np.unique(spectra[used], axis=0)) == len(used) > 1
