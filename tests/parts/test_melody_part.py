"""The melody embedder as a part of `fit`: tokens of crops, the training of a stage on them, and no change where there is no melody."""

import dataclasses
import functools

import numpy as np
import pytest
from tiny_parts import write_clips, write_metadata

from musiclm_jax import bundle
from musiclm_jax.cli.gin_config import load_config
from musiclm_jax.data.clips import Clip, ClipStore
from musiclm_jax.data.pairs import other_renderings
from musiclm_jax.data.token_store import TokenArray, offsets
from musiclm_jax.errors import UserError
from musiclm_jax.models.melody import MelodyConfig
from musiclm_jax.parts.fit import run_step
from musiclm_jax.parts.melody import MelodyTokens
from musiclm_jax.parts.part import PREPARE, Part, Step, TokenStream, save_array
from musiclm_jax.parts.token_set import trained_on_tokens
from musiclm_jax.tasks.stage import StageRecipe
from musiclm_jax.tokens import ABSENT
from musiclm_jax.training.optim import OptimizerConfig

# ---------------------------------------------------------------------------------------------------------------------- Tokens of crops

CONFIG = MelodyConfig(num_levels=2, num_codes=1000)


def clips(*melodies: str | None) -> ClipStore:
    return ClipStore(np.zeros(len(melodies), np.int16), tuple(Clip(f"{i}.wav", i, 1, (), "train", {}, name) for i, name in enumerate(melodies)), 24_000)


def test_other_renderings_are_those_of_the_same_melody():
    assert other_renderings(clips("a", "b", None, "a", "a", None)) == [(3, 4), (), (), (0, 4), (0, 3), ()]


def tokens(seconds: tuple[float, ...], others, *, step_sec=0.5) -> MelodyTokens:
    """Clips of some lengths. Window w of clip c, at w times `step_sec`, has the codes (c, w)."""
    counts = [int((length - CONFIG.window_sec) / step_sec) + 1 for length in seconds]
    codes = np.concatenate([np.stack([np.full(count, clip), np.arange(count)], axis=1) for clip, count in enumerate(counts)]).astype(np.int16)
    return MelodyTokens(CONFIG, step_sec, codes, offsets(counts), others)


def crops(of: MelodyTokens, chosen, starts, crop_sec, *, rows=None, seed=0) -> np.ndarray:
    rows = np.arange(len(chosen)) if rows is None else np.array(rows)
    return of.crops(chosen, starts, crop_sec, rows=rows, rng=np.random.default_rng(seed), text_share=0.0)


def test_a_crop_has_the_windows_that_begin_with_it():
    found = crops(tokens((30.0,), [()]), [0, 0, 0], [0.0, 2.0, 20.0], 10.0)
    # At 0, 3 and 6 s, in half seconds; each code is the nearest window's.
    np.testing.assert_array_equal(found[..., 1], [[0, 6, 12], [4, 10, 16], [40, 46, 52]])
    assert crops(tokens((30.0,), [()]), [0], [0.28], 10.0)[0, 0, 1] == 1


@pytest.mark.parametrize(("crop_sec", "fit"), [(30.0, 3), (10.0, 3), (9.96, 2), (5.0, 1), (4.0, 1)])
def test_windows_that_do_not_fit_into_the_crop_are_absent(crop_sec, fit):
    assert CONFIG.fitting(crop_sec) == fit
    found = crops(tokens((40.0,), [()]), [0], [1.0], crop_sec)[0]
    assert (found[fit:] == ABSENT).all() and (found[:fit] != ABSENT).all()


def test_another_rendering_gives_the_melody():
    drawn = crops(tokens((30.0,) * 4, [(1, 2), (0, 2), (0, 1), ()]), [0] * 200 + [3] * 9, [0.0] * 209, 10.0)[:, 0, 0]
    assert set(drawn[:200]) == {1, 2} and 60 < np.sum(drawn[:200] == 1) < 140
    assert (drawn[200:] == 3).all()  # It is the only one.


def test_where_a_shorter_rendering_ends_its_tokens_are_absent():
    found = crops(tokens((30.0, 12.0), [(1,), (0,)]), [0, 0], [4.0, 20.0], 10.0)
    assert found[0, :, 1].tolist() == [8, 14, ABSENT] and (found[1] == ABSENT).all()


def test_rows_do_not_change_what_is_drawn():
    of, chosen = tokens((30.0,) * 5, [(1, 2), (0, 2), (0, 1), (4,), (3,)]), [0, 1, 2, 3, 4] * 3
    whole = crops(of, chosen, [1.0] * 15, 10.0)
    np.testing.assert_array_equal(crops(of, chosen, [1.0] * 15, 10.0, rows=[3, 11]), whole[[3, 11]])


# ---------------------------------------------------------------------------------------------------------------------- Training


@dataclasses.dataclass(frozen=True)
class OtherTokens(Part):
    """Semantic tokens at random, in the place of trained tokenizers."""

    @property
    def name(self) -> str:
        return "random"

    def steps(self, fit):
        return (Step("random", "drawing tokens", self._draw, ("semantic.npy",)),)

    def streams(self, fit):
        streams = fit.model.streams
        semantic = lambda run: TokenArray.open(run.folder("random") / "semantic.npy", run.clips, rate_hz=25, spec=fit.model.audio)  # noqa: E731
        return (TokenStream(streams["semantic"], ("random",), semantic), TokenStream(streams["mulan"], ("random",), lambda run: NoWords()))

    def _draw(self, run, work):
        total = sum(-(-clip.length // 960) for clip in run.clips.clips)
        save_array(work.folder / "semantic.npy", np.random.default_rng(0).integers(7, size=total).astype(np.int16))
        return {}


class NoWords:
    def crops(self, clips, starts_sec, crop_sec, *, rows, rng, text_share):
        return np.zeros((len(rows), 2), np.int32)


@functools.cache
def config():
    config = load_config("test", ["runs/with_melody.gin"])
    fast = StageRecipe(num_steps=4, optimizer=OptimizerConfig(learning_rate=1e-3, schedule="constant", warmup_steps=1))
    stage = dataclasses.replace(config.part("semantic"), recipe=fast)
    return dataclasses.replace(config, parts=(config.part(PREPARE), OtherTokens(), config.part("melody"), stage))


def test_embedder_tokens_and_stage_are_trained(tmp_path):
    data = write_clips(tmp_path / "data", number=6)
    split = lambda i: "test" if i > 3 else "train"  # noqa: E731
    write_metadata(data, [{"file_name": f"{i}.wav", "captions": ["a tone"], "melody": f"tune {i // 2}", "split": split(i)} for i in range(6)])
    results = {step: run_step(step, data, config=config(), workdir=tmp_path / "work") for step in ("random", "melody", "melody_tokens", "semantic")}
    # Of each clip a window of 0.4 s each 0.2 s, up to 48,000 samples and more.
    codes = np.load(tmp_path / "work" / "melody_tokens" / "melody.npy")
    assert codes.shape == (results["melody_tokens"]["windows"], 2) and codes.dtype == np.int16 and codes.max() < 3
    assert len(codes) == sum((48_000 + 7001 * i - 9600) // 4800 + 1 for i in range(6))
    assert np.isfinite(results["semantic"]["eval_loss"])
    weights, _ = bundle.read_arrays(tmp_path / "work" / "semantic" / "variables.safetensors")
    # Codes of the melody, of MuLan and of w2v-BERT have rows of their own, and one more is the mask.
    assert weights["params"]["embed"]["embedding"].shape == (2 * 3 + 2 * 3 + 7 + 1, 8)
    embedder, _ = bundle.read_arrays(tmp_path / "work" / "melody" / "variables.safetensors")
    bundle.check_shapes(embedder, config().model.variable_shapes("melody"), where="melody")


def test_too_few_windows_are_found_before_the_training(tmp_path):
    data = write_clips(tmp_path / "data", number=2, melody="tune", split="train")
    many = dataclasses.replace(config(), model=dataclasses.replace(config().model, melody=dataclasses.replace(config().model.melody, num_codes=100)))
    with pytest.raises(UserError, match="13 windows are too few for num_codes=100 codes"):
        run_step("melody", data, config=many, workdir=tmp_path / "work")
    assert not (tmp_path / "work" / "melody" / "checkpoints").exists()


def test_what_the_steps_need_and_the_bundle_has():
    whole = load_config("test", ["runs/with_melody.gin"])
    assert whole.steps["melody_tokens"].needs == (PREPARE, "melody") and {"melody", "melody_tokens"} <= set(whole.steps["semantic"].needs)
    assert "melody" not in whole.steps["coarse"].needs and "melody" in whole.steps["export"].needs
    assert "bundle/melody.safetensors" in whole.steps["export"].outputs and whole.model.streams["melody"].steps == 3
    shapes = {name: value.shape for name, value in whole.part("semantic").batch_shapes(whole).items()}
    assert shapes == {"melody": (2, 3, 2), "mulan": (2, 2), "semantic": (2, 50)}


def test_no_step_of_a_model_without_melody_changes():
    """Fields of the melody are in no settings of other trainings, so that these are not taken for new ones."""
    plain = load_config("test")
    text = repr([step.settings for name, step in plain.steps.items() if name != "melody"])
    assert "melody" not in text and "optional" not in text
    assert "melody_tokens" not in plain.steps and plain.part("melody").config(plain) == plain.part("melody").model
    assert "condition_windows" not in repr(plain.steps["melody"].settings)
    with_melody = load_config("test", ["runs/with_melody.gin"])
    assert with_melody.steps["melody"].settings == plain.steps["melody"].settings  # One embedder for both.
    assert with_melody.steps["coarse"].settings == plain.steps["coarse"].settings != with_melody.steps["semantic"].settings


def test_a_token_set_has_no_melodies(monkeypatch):
    monkeypatch.setattr("musiclm_jax.parts.token_set.TokenSet.open", lambda path: pytest.fail("opened before the check"))
    with pytest.raises(UserError, match="the semantic stage reads melody, and tokens has no melody tokens: train on the folder of clips"):
        trained_on_tokens(load_config("test", ["runs/with_melody.gin"]), "tokens")
