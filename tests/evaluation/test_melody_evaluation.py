import json

import jax
import numpy as np
import pytest

from musiclm_jax import audio
from musiclm_jax.cli.gin_config import load_config
from musiclm_jax.errors import UserError
from musiclm_jax.evaluation.melody import evaluate_melody, format_melody_report, load_embedder, ranks, scores
from musiclm_jax.models import melody
from musiclm_jax.parts.fit import run_step


def test_ranks_are_the_loops():
    vectors = np.random.default_rng(0).normal(size=(3, 5, 2, 7))
    unit = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
    places = ranks(vectors)
    assert places.shape == (3, 5, 2) and len(set(places.ravel())) == 5
    for r, m, w in np.ndindex(3, 5, 2):
        nearness = [unit[r, m, w] @ unit[(r + 1) % 3, n, w] for n in range(5)]
        assert places[r, m, w] == sorted(nearness, reverse=True).index(nearness[m]) + 1


def test_what_tells_melodies_is_first_and_what_tells_nothing_is_last():
    tunes = np.eye(5)[None, :, None].repeat(2, axis=0)
    assert np.all(ranks(tunes) == 1) and np.all(ranks(np.ones((2, 5, 1, 3))) == 5)
    assert scores(np.array([1, 2, 4, 20])) == {"recall_at_1": 0.25, "recall_at_10": 0.75, "mean_reciprocal_rank": 0.45}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Six tunes, three of them held out, in two renderings, and an embedder of a few steps."""
    folder = tmp_path_factory.mktemp("melody")
    (folder / "data").mkdir()
    rng, lines = np.random.default_rng(0), []
    for tune in range(6):
        for rendering in range(2):
            name = f"{tune}-{rendering}.wav"
            wave = 0.3 * np.sin(np.arange(28_000) * 0.05 * 1.6**tune) + 0.01 * rng.standard_normal(28_000)
            audio.write_wav(folder / "data" / name, wave.astype(np.float32))
            lines.append({"file_name": name, "melody": f"tune {tune}", "split": "test" if tune % 2 else "train"})
    (folder / "data" / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    config = load_config("test")
    results = run_step("melody", folder / "data", config=config, workdir=folder / "work")
    return folder, config, results


@pytest.mark.parametrize("text", ["", "[]", "{"])
def test_a_damaged_config_says_what_to_do(tmp_path, text):
    (tmp_path / "melody").mkdir()
    (tmp_path / "melody" / "done.json").write_text("{}")
    (tmp_path / "melody" / "config.json").write_text(text)
    with pytest.raises(UserError, match="melody/config.json is damaged: delete it, and `musiclm train melody` makes it again$"):
        load_embedder(tmp_path)


def test_a_trained_embedder_is_measured(trained):
    folder, config, results = trained
    # 28,000 samples are three windows of 0.4 s, 0.3 s apart; six clips are trained on.
    assert results["windows"] == 18 and np.isfinite(results["eval_loss"])
    report = evaluate_melody(folder / "work")
    assert (report["num_melodies"], report["num_renderings"], report["num_windows"]) == (3, 2, 3)
    assert report["rows"]["chance"] == pytest.approx({"recall_at_1": 1 / 3, "recall_at_10": 1.0, "mean_reciprocal_rank": (1 + 1 / 2 + 1 / 3) / 3})
    assert report["rows"]["log_mel"]["recall_at_1"] == 1.0  # Tones of other pitches.
    assert "3 held-out melodies" in format_melody_report(report)


def test_the_embedder_stands_on_its_own_and_its_step_is_done_once(trained, capsys):
    folder, config, results = trained
    model, variables = load_embedder(folder / "work")
    assert model == config.part("melody").model
    wave = jax.random.normal(jax.random.key(1), (2, 24_000))
    tokens = melody.tokens(model, variables, melody.embed(model, variables["params"], wave[:, : model.window_samples]))
    assert tokens.shape == (2, 2) and int(jax.numpy.max(tokens)) < 3
    capsys.readouterr()
    assert run_step("melody", folder / "data", config=config, workdir=folder / "work") == results
    assert "melody: done" in capsys.readouterr().out


def test_mistakes(trained, tmp_path):
    folder, config, _ = trained
    with pytest.raises(UserError, match="has no trained melody embedder: run `musiclm train melody"):
        evaluate_melody(tmp_path)
    # A single rendering each.
    (tmp_path / "data").mkdir()
    audio.write_wav(tmp_path / "data" / "a.wav", np.sin(np.arange(30_000) * 0.05))
    (tmp_path / "data" / "metadata.jsonl").write_text('{"file_name": "a.wav", "melody": "a"}')
    with pytest.raises(UserError, match="no melody of split 'train' has two renderings.*--variants 2"):
        run_step("melody", tmp_path / "data", config=config, workdir=tmp_path / "work")
