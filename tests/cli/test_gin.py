"""gin files: each shipped one parses, everything it binds is read, mistakes name what was meant."""

import dataclasses
import importlib
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import musiclm_jax
from musiclm_jax.cli import gin_config as main
from musiclm_jax.cli.gin_config import load_config
from musiclm_jax.configs import MusicLMConfig
from musiclm_jax.errors import UserError
from musiclm_jax.generation.timing import TimingConfig
from musiclm_jax.models.melody import MelodyConfig
from musiclm_jax.parts.fit import FitConfig
from musiclm_jax.parts.trained import TrainedPart

STAGES = ("semantic", "coarse", "fine")


def recipe(config, part):
    return config.part(part).recipe


def test_the_sizes_ship():
    assert {"base", "demo", "test"} <= set(main.sizes())


@pytest.mark.parametrize("size", main.sizes())
def test_every_size_parses_and_binds_nothing_in_vain(size):
    config = load_config(size)  # Raises where a bound value is read by nothing.
    assert isinstance(config, FitConfig) and hash(config)
    assert MusicLMConfig.from_dict(config.model.to_dict()) == config.model


@pytest.mark.parametrize("size", main.sizes())
def test_the_run_of_fit_parses_on_every_size(size):
    assert load_config(size, ["runs/fit.gin"]).part("semantic").loop.log_every == 20


@pytest.mark.parametrize("size", main.sizes())
def test_every_size_may_follow_melodies(size):
    plain, config = load_config(size), load_config(size, ["runs/with_melody.gin"])
    assert plain.model.melody is None and config.model.melody == plain.part("melody").model
    assert [each.stream for each in config.model.stage("semantic").prefix] == ["melody", "mulan"]
    assert dataclasses.replace(config.model, melody=None, stages=plain.model.stages) == plain.model


@pytest.mark.parametrize("files", [["runs/with_timing.gin", "runs/with_melody.gin"], ["runs/with_melody.gin", "runs/with_timing.gin"]])
def test_optional_streams_go_together(files):
    plain, config = load_config("demo"), load_config("demo", files)
    assert [each.stream for each in config.model.stage("semantic").prefix] == ["melody", "timing", "mulan"]
    assert config.model.timing == TimingConfig() and load_config("demo", files[:1]).model != config.model != plain.model
    assert "timing" not in plain.model.to_dict()


def test_the_run_of_the_packaged_model_has_melody_timing_and_voice():
    config = load_config("demo", ["runs/packaged.gin"])
    assert [each.stream for each in config.model.stage("semantic").prefix] == ["voice", "melody", "timing", "mulan"]
    assert config.model.mulan.text.word_vectors == "minilm" and config.model.stage("coarse").window_sec == 8
    assert {"melody", "voice_tokens"} <= set(config.steps)


def test_a_recipe_is_its_part_of_base_and_names_its_size(tmp_path):
    trained = [part.name for part in load_config("base").parts if isinstance(part, TrainedPart)]
    parts = [part for part in trained if part != "semantic_reranker"]  # Both rerankers are trained alike.
    assert sorted(path.name for path in (main.gin_folder() / "runs").glob("*.gin")) == sorted(
        ["fit.gin", "packaged.gin", "with_melody.gin", "with_timing.gin", "with_voice.gin", *(f"{part}_base.gin" for part in parts)]
    )
    base = load_config("base")
    for part in parts:
        path = main.gin_folder() / "runs" / f"{part}_base.gin"
        assert load_config(None, [f"runs/{path.name}"]) == load_config("base", [str(path)]) == base
    copy = tmp_path / "fine_base.gin"  # One's own, changed.
    copy.write_text((main.gin_folder() / "runs" / copy.name).read_text().replace("batch_size = 256", "batch_size = 64"))
    assert load_config(None, [str(copy)]).part("fine").batch_size == 64 and load_config(None).model == load_config("demo").model != base.model


def test_recipes_in_the_docs_parse():
    (path,) = (Path(__file__).parents[2] / "docs").rglob("*.gin")
    assert recipe(load_config("base", [str(path)]), "codec").num_steps == 20_000


def lean(model, remat):
    """How the size base computes: in bfloat16, and recomputing."""
    return dataclasses.replace(model, dtype="bfloat16", remat=remat)


def test_base_is_the_paper_and_the_coarse_stages_bias_by_time():
    config, paper = load_config("base"), MusicLMConfig()
    stages = [dataclasses.replace(stage, model=lean(stage.model, "products")) for stage in paper.stages]
    stages[1] = dataclasses.replace(stages[1], model=dataclasses.replace(stages[1].model, time_bias=True))
    codec = dataclasses.replace(paper.codec, dtype="bfloat16")
    models = {"codec": codec, "w2v_bert": lean(paper.w2v_bert, "full"), "mulan": lean(paper.mulan, "products"), "stages": tuple(stages)}
    assert config.model == dataclasses.replace(paper, **models)
    assert config == FitConfig(model=config.model, parts=config.parts, encode_sec=30.0)
    assert [stage.window_sec for stage in config.model.stages] == [30.0, 10.0, 3.0]
    task = config.part("coarse").task(config)
    assert (task.name, task.layout, task.model) == ("coarse", config.model.layout("coarse"), config.model.stage("coarse").model)


def test_recipes_hold_what_the_papers_state():
    config = load_config("base")
    for stage in STAGES:
        optimizer = recipe(config, stage).optimizer
        assert (optimizer.name, optimizer.schedule, optimizer.learning_rate, optimizer.warmup_steps) == ("adafactor", "rsqrt", 1.0, 10_000)
        assert config.model.stage(stage).model.dropout == 0.1
        assert (config.part(stage).batch_size, recipe(config, stage).num_steps) == (256, 1_000_000)
    codec = recipe(config, "codec")
    assert (codec.reconstruction_weight, codec.adversarial_weight, codec.feature_weight, codec.waveform_weight) == (1.0, 1.0, 100.0, 0.0)
    assert (codec.loss_windows, codec.loss_mels) == (tuple(2**i for i in range(6, 12)), (64,) * 6)
    assert (codec.quantizer.ema_decay, codec.discriminator_start_step, codec.quantizer_start_step) == (0.99, 0, 0)
    w2v_bert = recipe(config, "w2v_bert")
    assert (w2v_bert.mask_start_rate, w2v_bert.mask_span, w2v_bert.num_distractors, w2v_bert.diversity_weight) == (0.065, 10, 100, 0.1)
    optimizer = w2v_bert.optimizer
    assert (optimizer.schedule, optimizer.learning_rate, optimizer.warmup_steps, optimizer.weight_decay) == ("transformer", 2e-3, 25_000, 0.0)
    assert (config.part("w2v_bert").batch_size, config.part("mulan").batch_size, config.part("mulan").crop_sec) == (2048, 6144, 10.0)
    assert (config.model.mulan.loss, config.model.mulan.init_temperature) == ("decoupled", 0.1)
    for part in ("mulan", "reranker", "semantic_reranker"):
        assert dict(config.part(part).text_mix) == {"short": 2, "long": 2, "playlist": 1, "label": 1}
        assert load_config("demo").part(part).text_mix == load_config("test").part(part).text_mix == ()
    melody = config.part("melody")
    assert (melody.model, melody.recipe.margin, melody.crop_sec) == (lean(MelodyConfig(), "products"), 0.2, 4.0)
    assert (melody.model.num_levels, melody.model.num_codes, melody.model.embedding_dim, melody.model.num_layers) == (24, 512, 192, 12)


def test_a_later_value_in_a_narrower_scope_replaces_that_of_a_file(tmp_path):
    name = "RVQConfig.dead_code_ratio"
    assert load_config("test", [], [f"codec/{name}=0.4"]).part("codec").recipe.quantizer.dead_code_ratio == 0.4
    (tmp_path / "mine.gin").write_text(f"from musiclm_jax.nn import quantize\nquantize.{name} = 0.3\n")
    files = [str(tmp_path / "mine.gin")]
    assert load_config("test", files, [f"codec/{name}=0.4"]).part("codec").recipe.quantizer.dead_code_ratio == 0.4
    (tmp_path / "mine.gin").write_text(f"from musiclm_jax.nn import quantize\nquantize.{name} = 0.3\ncodec/quantize.{name} = 0.4\n")
    with pytest.raises(UserError, match=f"^{name} is set but nothing reads it"):
        load_config("test", files)


def test_a_value_that_a_narrower_scope_overrules_is_not_lost_silently():
    for name, meant in (("StageConfig.dropout", "fine/StageConfig.dropout"), ("stage/OptimizerConfig.clip_norm", "stage/fine/OptimizerConfig.clip_norm")):
        with pytest.raises(UserError, match=f"^{name} is set but nothing reads it: did you mean .*{meant}"):
            load_config("base", bindings=[f"{name}=0.5"])
    assert load_config("demo", bindings=["StageConfig.dropout=0.2"]).model.stage("fine").model.dropout == 0.2


def test_later_values_win_and_strings_need_no_quotes(tmp_path):
    file = tmp_path / "mine.gin"
    file.write_text("SEED = 3\nCOARSE_STEPS = 5\n")
    bindings = ["SEED=4", "semantic/StageConfig.dim=20", "semantic/StageConfig.dtype=bfloat16"]
    config = load_config("test", [str(file)], bindings)
    assert config.seed == config.part("coarse").loop.seed == 4 and recipe(config, "coarse").num_steps == 5
    semantic, coarse = (config.model.stage(name).model for name in ("semantic", "coarse"))
    assert (semantic.dim, semantic.dtype, coarse.dtype) == (20, "bfloat16", "float32")
    assert load_config("test").seed == 0  # Nothing of one call is left in the next.
    assert "StageConfig.dim" in main.operative_config()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("SEED = nan", "{file}: 'nan' is no value that gin reads: give a number, a text in quotes, a list, %MACRO or @reference"),
        ("SEED = lambda: 3", "{file}: 'lambda' is no value that gin reads"),
        ("SEED = %NOWHERE", "%NOWHERE is read and not set: give it with --gin.NOWHERE=VALUE, or in a file with --gin_file"),
        ("include '{file}'", 'a file or a value contains itself (file "{file}", line 1): remove what leads back to it'),
        ("fit.FitConfig.parts = (@fit.FitConfig(),)", "a file or a value contains itself"),
        ("fit.FitConfig.parts = 3", "a value of parts is of another kind than is expected (in FitConfig): "),
    ],
)
def test_mistakes_of_a_file_are_named(text, message, tmp_path):
    file = tmp_path / "mine.gin"
    file.write_text(text.format(file=file) + "\n")
    with pytest.raises(UserError) as error:
        load_config("test", [str(file)])
    assert str(error.value).startswith(message.format(file=file))


@pytest.mark.parametrize(
    ("binding", "message"),
    [
        ("SEMANTC_STEPS=3", "SEMANTC_STEPS is set but nothing reads it: did you mean SEMANTIC_STEPS"),
        ("semntic/StageConfig.dim=3", "semntic/StageConfig.dim is set but nothing reads it: did you mean semantic/StageConfig.dim"),
        ("StageConfig.dimm=3", "StageConfig has no field 'dimm': did you mean dim"),
        ("StageConf.dim=3", "there is no 'StageConf': did you mean StageConfig"),
        ("optim.OptimizerConfig.name=sgd", "name='sgd': choose 'adamw' or 'adafactor' (in "),
        ("semantic/StagePart.batch_size=0", "batch_size=0: choose a whole number from 1 to 1,048,576 (in semantic/StagePart)"),
        ("SEED", "expected NAME=VALUE"),
        ("coarse/StagePart.crop_sec=60.0", "coarse: crop_sec=60.0, window_sec=1.0: a stage is trained on its window; leave crop_sec out"),
        ("coarse/StageSpec.window_sec=60.01", "window_sec=60.01 is 1500.25 steps of 'semantic': choose a whole number"),
        ("coarse/SamplingConfig.guidance=2.0", "guidance=2 of the coarse stage: it was trained without dropping conditions"),
        ("TEXT_MIX=(('short', 1.0), ('long', -1.0))", "mulan: text_mix=(('short', 1.0), ('long', -1.0)): name each kind once"),
        ("TEXT_MIX=(('short', 0.0),)", "one at least above 0"),
        ("TEXT_MIX=(('short', 1e999),)", "with a weight of 0 or more"),
        ("TEXT_MIX=(('short', 1.0), ('short', 2.0))", "name each kind once"),
        ("MelodyPart.crop_sec=0.8", "melody: crop_sec=0.8 at 24000 Hz, window_sec=0.4 at 24000 Hz: make both equal"),
    ],
)
def test_mistakes_are_one_line(binding, message):
    with pytest.raises(UserError) as error:
        load_config("test", bindings=[binding])
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("SOUNDSTREAM_STEPS=3", "CODEC_STEPS"),
        ("soundstream/OptimizerConfig.learning_rate=0.1", "codec/"),
        ("w2v_bert/steps.Training.batch_size=4", "W2vBertPart.batch_size"),
        ("coarse/Training.crop_sec=4", "for a stage StageSpec.window_sec"),
        ("soundstream/TrainConfig.save_every=4", "codec/TrainConfig.save_every"),
        ("semantic/TrainConfig.num_steps=4", "SEMANTIC_STEPS"),
        ("WindowConfig.coarse_hop_sec=4", "coarse/StageSpec.hop_sec"),
        ("MusicLMConfig.coarse_levels=4", "COARSE_LEVELS"),
        ("MusicLMConfig.num_candidates=4", "SelectionConfig.num_candidates"),
        ("FitConfig.mulan_hop_sec=4", "MuLanPart.condition_hop_sec"),
        ("StageTask.z_loss=0", "StageRecipe.z_loss"),
        ("StageTask.codebook_init=True", "StagePart.codebook_init"),
        ("CodecTask.feature_weight=0", "SoundStreamRecipe.feature_weight"),
        ("SpectralCodecTask.heard_start_step=0", "SpectralCodecRecipe.wave_loss_start_step"),
        ("MusicLMConfig.windows=0", "StageSpec.window_sec"),
        ("TokenSpec.semantic_codes=0", "W2vBertConfig.num_clusters"),
    ],
)
def test_a_renamed_value_is_an_error_that_names_the_new_one(old, new, tmp_path):
    with pytest.raises(UserError, match=re.escape(new)) as error:
        load_config("test", bindings=[old])
    assert "\n" not in str(error.value)
    (tmp_path / "mine.gin").write_text(f"{old.replace('=', ' = ')}\n")
    with pytest.raises(UserError, match=rf"mine\.gin|{re.escape(new)}"):
        load_config("test", [str(tmp_path / "mine.gin")])


# The fields from before the first release that are gone.
OLD_FIELDS = {
    "Training": "task batch_size crop_sec loop",
    "TrainConfig": "num_steps",
    "OptimizerConfig": "total_steps",
    "SamplingConfig": "cooling",
    "WindowConfig": "semantic_window_sec semantic_hop_sec coarse_window_sec coarse_hop_sec fine_window_sec max_fine_batch",
    "FitConfig": "soundstream w2v_bert mulan reranker semantic_reranker semantic coarse fine melody text_share text_mix kmeans_sec mulan_hop_sec bundle_dtype",
    "MusicLMConfig": "soundstream coarse_levels semantic coarse fine fine_sees_mulan use_fine windows num_candidates num_drafts draft_sec "
    "semantic_sampling coarse_sampling fine_sampling",
    "TokenSpec": "mulan_levels mulan_codes semantic_codes acoustic_levels acoustic_codes coarse_levels",
    "CodecTask": "name model quantizer discriminator sample_rate_hz loss_windows loss_mels optimizer discriminator_optimizer discriminator_start_step "
    "quantizer_start_step quantizer_dropout reconstruction_weight waveform_weight adversarial_weight feature_weight commitment_weight",
    "SpectralCodecTask": "name model quantizer sample_rate_hz loss_mels floor_weight mel_distance_weight roughness_weight heard_start_step optimizer "
    "quantizer_start_step quantizer_dropout commitment_weight finish_step finish_levels",
    "W2vBertTask": "name model optimizer mask_start_rate mask_span num_distractors contrastive_temperature diversity_weight gumbel_temperature gumbel_decay",
    "MuLanTask": "name model optimizer word_weight",
    "StageTask": "name model tokens optimizer z_loss prefix_dropout past_dropout codebook_init fine_sees_mulan",
    "MelodyTask": "name model optimizer margin",
}
OLD_NAMES = [f"{cls}.{field}" for cls, fields in OLD_FIELDS.items() for field in fields.split()]
OLD_NAMES += sorted(OLD_FIELDS.keys() - {"TrainConfig", "OptimizerConfig", "SamplingConfig", "FitConfig", "MusicLMConfig"})
OLD_NAMES += ["SOUNDSTREAM_STEPS", "SOUNDSTREAM_LAST_PART", "soundstream/OptimizerConfig.name", "soundstream/train.TrainConfig.log_every"]


def todays_names():
    """Classes, their fields and macros, as docs/configuration.md lists them; another test compares that page with the source."""
    names, cls = set(), None
    for line in (Path(__file__).parents[2] / "docs" / "configuration.md").read_text().splitlines():
        if heading := re.match(r"### (\w+)", line):
            names.add(cls := heading[1])
        elif macro := re.match(r"\| `(\w+)` \|", line):
            names.add(macro[1])
        elif cls and (field := re.match(r"- `(\w+):", line)):
            names.add(f"{cls}.{field[1]}")
    return names


@pytest.mark.parametrize("old", OLD_NAMES)
def test_the_replacement_of_an_old_name_exists(old):
    known = todays_names()
    assert old not in known
    named = re.findall(r"\b[A-Z]\w+(?:\.\w+)?", main._renamed(old))
    assert named and set(named) <= known


def test_every_entry_of_the_old_names_is_used():
    first = {next((pattern for pattern in main._RENAMED if re.search(pattern, old)), None) for old in OLD_NAMES}
    assert first == set(main._RENAMED)


@pytest.mark.parametrize("module", main._MOVED.values())
def test_the_replacement_of_an_old_module_exists(module):
    assert importlib.import_module(f"musiclm_jax.{module}")


def test_a_module_that_has_moved_is_named(tmp_path):
    (tmp_path / "mine.gin").write_text("from __gin__ import dynamic_registration\nfrom musiclm_jax import steps\nsteps.FitConfig.seed = 3\n")
    with pytest.raises(UserError, match="musiclm_jax.steps is musiclm_jax.parts.fit now: `from musiclm_jax.parts import fit`"):
        load_config("test", [str(tmp_path / "mine.gin")])


def test_a_class_that_is_gone_from_a_module_is_named(tmp_path):
    imports = "from __gin__ import dynamic_registration\nfrom musiclm_jax.tasks import codec as codec_task\n"
    (tmp_path / "mine.gin").write_text(f"{imports}codec_task.CodecTask.feature_weight = 3\n")
    with pytest.raises(UserError, match=r'CodecTask.feature_weight is SoundStreamRecipe.feature_weight now \(file ".*mine.gin", line 3\)'):
        load_config("test", [str(tmp_path / "mine.gin")])


UNTYPED = """
    from musiclm_jax.errors import UserError
    from musiclm_jax.cli.gin_config import load_config

    for binding in ("semantic/StageConfig.dim=wide", "TEXT_SHARE=half", "StageConfig.dropout=3", "MuLanConfig.loss=3", "MuLanConfig.dtype=3"):
        try:
            load_config("test", [], [binding])
            print(binding, "was accepted")
        except UserError as error:
            print(error)
    config = load_config("test", [], ["SoundStreamConfig.strides=[2, 240]", "CodecPart.crop_sec=1", "StageConfig.dropout=0"])
    print(repr((config.model.codec.strides, config.part("codec").crop_sec, config.model.stage("fine").model.dropout)))
"""


def test_values_of_another_type_are_named_or_brought_to_the_right_one():
    # In a process of its own: the type checker of these tests would be faster.
    env = {**os.environ, "PYTHONPATH": str(Path(musiclm_jax.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(UNTYPED)], capture_output=True, text=True, timeout=300, env=env)
    assert done.returncode == 0, done.stderr[-2000:]
    dim, share, dropout, loss, dtype, values = done.stdout.splitlines()
    assert "(in semantic/StageConfig)" in dim and "StagePart" in share and "dropout=3" in dropout
    assert loss.startswith("loss=3: choose") and dtype == "dtype=3: choose 'float32' or 'bfloat16' (in MuLanConfig)"
    assert values == "((2, 240), 1.0, 0.0)"


def test_unknown_sizes_and_files(tmp_path):
    with pytest.raises(UserError, match="size 'huge': choose one of base"):
        load_config("huge")
    with pytest.raises(UserError, match=r"no such gin file; name a path, or one of .*runs/fit\.gin"):
        load_config("test", ["runs/fitt.gin"])
    file = tmp_path / "broken.gin"
    file.write_text("SEED = = 3\n")
    with pytest.raises(UserError, match="broken.gin"):
        load_config("test", [str(file)])


def test_gin_files_name_no_machine():
    for path in Path(main.gin_folder()).rglob("*.gin"):
        assert "/" + "work/" not in path.read_text() and "/home/" not in path.read_text()
