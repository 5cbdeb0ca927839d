"""The real thing, on a few tiny clips: a bundle, though the training was killed on the way."""

import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time
import zipfile
from pathlib import Path

import notebooks
import numpy as np
import soundfile
from tiny_parts import read_metadata, write_clips, write_metadata

import musiclm_jax
from musiclm_jax.cli.gin_config import load_config
from musiclm_jax.files import sha256_file
from musiclm_jax.musiclm import MusicLM
from musiclm_jax.parts.fit import fit, plan, run_step
from musiclm_jax.parts.part import Run
from musiclm_jax.pretrained import describe

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


def files(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): sha256_file(path) for path in sorted(folder.rglob("*")) if path.is_file()}


def test_five_clips_become_a_bundle_though_killed_on_the_way(tmp_path, monkeypatch):
    write_clips(tmp_path / "data", number=5)
    (tmp_path / "data" / "NOTICE").write_text("Flute by N. N.\n")
    process = start(tmp_path, "")
    deadline = time.monotonic() + 1800
    while not (tmp_path / "work" / "w2v_bert" / "checkpoints" / "2").exists():
        assert process.poll() is None and time.monotonic() < deadline, (tmp_path / "out").read_text()[-3000:]
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process = start(tmp_path, "", "", "FINE_STEPS=6")
    assert process.wait(timeout=1800) == 0, (tmp_path / "out").read_text()[-3000:]
    _, killed, resumed, again, longer = (tmp_path / "out").read_text().split("RUN\n")
    assert "[2/14] codec: finished" in killed and "w2v_bert: finished" not in killed
    assert "[2/14] codec: done" in resumed and "w2v_bert: training (continue)" in resumed and "[14/14] export: finished" in resumed
    assert again.count(": done\n") == 14
    assert longer.count(": done\n") == 12  # All but the two that changed.
    assert "from step 4 to step 6" in longer and "[14/14] export: finished" in longer

    # The bundle works, and its card says how it came about.
    config = load_config("test", bindings=["FINE_STEPS=6"])
    bundle = fit(tmp_path / "data", config=config, workdir=tmp_path / "work")
    model = MusicLM.from_pretrained(bundle)
    assert model.config == config.model
    card = (bundle / "README.md").read_text()
    assert all(word in card for word in ("5 clips", "| fine |", "| 6 |", "eval_mel_distance", "eval_bigram", "recall_chance", "text_perplexity_1"))
    assert card.endswith("## Notices of the data\n\n```text\nFlute by N. N.\n```\n")
    assert not re.search(r"minutes|seconds of training|20\d\d-\d\d", card)  # The same training gives the same card.
    load = lambda step, kind: np.load(tmp_path / "work" / step / f"{kind}.npy")  # noqa: E731
    semantic, acoustic, texts = load("semantic_tokens", "semantic"), load("acoustic_tokens", "acoustic"), load("rvq", "texts")
    assert acoustic.shape == (2 * len(semantic), 3)
    # The tokenizers alone, for `musiclm tokenize`.
    run_step("tokenizers", tmp_path / "data", config=config, workdir=tmp_path / "work")
    assert describe(tmp_path / "work" / "tokenizers" / "bundle").startswith(f"{tmp_path / 'work' / 'tokenizers' / 'bundle'}: tokenizers of a MusicLM")
    # Tokens of the store are what the bundle itself gives for the clip.
    wave = soundfile.read(tmp_path / "data" / "0.wav", dtype="float32")[0][None]
    np.testing.assert_array_equal(acoustic[:100], model.acoustic.encode(wave)[0])
    np.testing.assert_array_equal(semantic[:50], model.semantic.encode(wave)[0])

    # What trackers show is what the bundle itself makes.
    run = Run(config, tmp_path / "data", tmp_path / "work")
    found = {name: config.part(name).samples(run, run.weights(name)) for name in ("codec", "semantic", "coarse", "fine", "mulan")}
    clip, reconstruction = found["codec"]["clip"].wave[None], found["codec"]["reconstruction"].wave[None]
    np.testing.assert_array_equal(reconstruction, model.acoustic.decode(model.acoustic.encode(clip)))
    assert clip.shape[1] == run.clips.split("test")[0].length and np.abs(clip).max() > 0.1
    levels = ["codes_level_0", "codes_level_1", "codes_level_2"]
    assert list(found["codec"]) == ["clip", "reconstruction", *levels] and list(found["semantic"]) == levels[:1] and not found["mulan"]
    assert list(found["coarse"]) == [*levels[:1], "generated"] and list(found["fine"]) == [*levels[:2], "generated"]
    for name in ("coarse", "fine"):
        assert len(found[name]["generated"].wave) == 480 * len(found[name]["codes_level_0"].codes) > 0
    np.testing.assert_array_equal(texts[:2], model.mulan.text_tokens(["a low tone", "noise"]))
    # The rerankers started from MuLan, and went on.
    for reranker in (model.reranker, model.semantic_reranker):
        moved = np.abs(reranker.embed_text(["a low tone"]) - model.mulan.embed_text(["a low tone"])).max()
        assert 0 < moved < 0.5
    # A token that occurs in no clip has the mean spectrum of all; the others have their own.
    spectra, used = model.semantic_reranker.variables["spectra"], np.unique(semantic)
    assert spectra.shape == (7, model.config.mulan.mel.num_mels) and len(np.unique(spectra[used], axis=0)) == len(used) > 1

    check_notebook(tmp_path, monkeypatch)

    # What a changed setting or caption would redo, by the plan alone.
    lines = read_metadata(tmp_path / "data")
    todo = lambda *bindings: {  # noqa: E731
        each.step.name
        for each in plan(tmp_path / "data", config=load_config("test", bindings=["FINE_STEPS=6", *bindings]), workdir=tmp_path / "work")
        if each.action != "done"
    }
    stages = {"semantic", "coarse", "fine", "export"}
    from_mulan = {"mulan", "rvq", "reranker", "semantic_reranker", *stages} - {"fine"}  # The fine stage sees coarse codes alone.
    from_w2v_bert = {"w2v_bert", "kmeans", "semantic_tokens", "semantic_reranker", *stages} - {"fine"}
    assert todo() == set()
    for binding, redone in {
        "W2vBertPart.batch_size=4": from_w2v_bert,
        "W2vBertPart.kmeans_sec=3": from_w2v_bert - {"w2v_bert"},
        "W2V_BERT_STEPS=2": from_w2v_bert,
        "CodecPart.crop_sec=0.8": {"codec", "acoustic_tokens", "reranker", "coarse", "fine", "export"},
        "FitConfig.encode_sec=1.0": {"acoustic_tokens", "semantic_tokens", *stages},
        "MuLanPart.condition_hop_sec=0.25": {"rvq", "semantic", "coarse", "export"},
        "TEXT_MIX=(('short', 1.0),)": from_mulan,
        "TEXT_SHARE=0.1": stages - {"fine"},  # Which reads no MuLan tokens.
        "RERANKER_STEPS=5": {"reranker", "semantic_reranker", "export"},
        "coarse/StageSpec.hop_sec=0.2": {"export"},  # Used in generation only.
        "coarse/StageSpec.window_sec=0.8": {"coarse", "export"},
        "coarse/StageSpec.prefix_dropout=0.2": {"coarse", "export"},
        "fine/SamplingConfig.temperature=0.7": {"export"},
        "ExportPart.dtype='float16'": {"export"},
        "TrainConfig.log_every=1": set(),
        "TrainConfig.save_every=1": set(),
        "semantic/StageConfig.remat='full'": {"export"},  # The same numbers by another way.
    }.items():
        assert todo(binding) == redone, binding
    lines[0]["captions"].append("one more")
    write_metadata(tmp_path / "data", lines)
    assert todo() == from_mulan


def check_notebook(folder: Path, monkeypatch) -> None:
    """colab/train_your_own.ipynb, on a copy of a finished training, trains a stage longer, and its model makes music."""
    if not all(importlib.util.find_spec(package) for package in ("nbclient", "ipykernel", "matplotlib")):
        return
    shutil.copytree(folder / "work", folder / "own")
    shutil.make_archive(str(folder / "clips"), "zip", folder / "data")
    values = {"CLIPS": "clips.zip", "WORKDIR": "own", "SIZE": "test", "SETTINGS": ["FINE_STEPS=8"], "BUNDLE": "model", "SECONDS": 0.5}
    shown = notebooks.execute("train_your_own", folder, monkeypatch, **values, PROMPT="a low tone")
    assert shown.text("clips").startswith("5 clips, 5 with captions, 1 held out\na low tone\nnoise\n") and len(shown.seconds("clips")) == 1
    assert shown.text("fit").count(": done\n") == 12 and "from step 6 to step 8" in shown.text("fit")
    assert len(shown.figures("curve")) == 1 and shown.seconds("listening") == [0.5, 0.5]
    assert MusicLM.from_pretrained(folder / "model").config == load_config("test", bindings=["FINE_STEPS=8"]).model
    assert zipfile.is_zipfile(folder / "model.zip")
