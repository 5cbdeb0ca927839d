"""T5X's own programs on our stages, each in a process of its own. tests/t5x/run.sh runs this where T5X can be installed; CI cannot."""

import dataclasses
import importlib.util
import json
import socket

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

# seqio comes with T5X. The name t5x is also that of this folder.
pytestmark = pytest.mark.skipif(importlib.util.find_spec("seqio") is None, reason="T5X is not installed, for it is not on PyPI: tests/t5x/run.sh installs it")

from tiny_parts import write_clips  # noqa: E402
from toy import HERE, finish, start, with_tokens  # noqa: E402

from musiclm_jax.cli.gin_config import load_config  # noqa: E402
from musiclm_jax.interop.t5x.checkpoints import read_params, write_params  # noqa: E402
from musiclm_jax.interop.t5x.stage import StageRun  # noqa: E402
from musiclm_jax.models import stage as stage_model  # noqa: E402
from musiclm_jax.parts.fit import run_step  # noqa: E402
from musiclm_jax.parts.part import Run  # noqa: E402
from musiclm_jax.training.loop import TrainConfig, train  # noqa: E402

STAGES = ("semantic", "coarse", "fine")
STEPS, BATCH = 5, 8


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A folder with clips and a work folder in which the tokens are made."""
    folder = tmp_path_factory.mktemp("toy")
    write_clips(folder / "data", number=6)
    run_step("tokens", folder / "data", config=config(), workdir=folder / "work")
    return folder


def config():
    """The config of the toy stages."""
    return with_tokens(load_config("test", [HERE / "toy.gin"], [*(f"{name}/StagePart.batch_size={BATCH}" for name in STAGES)]))


def values(work, *more):
    """gin values of all programs."""
    return [f'DATA="{work / "data"}"', f'WORKDIR="{work / "work"}"', f"BATCH_SIZE={BATCH}", *more]


def training(work, folder, steps, *more):
    """gin values of a training of `steps` steps, each logged, the last one saved in a folder of its own."""
    periods = ("train.stats_period=1", f"train.eval_period={STEPS}", f"SaveCheckpointConfig.period={STEPS}")
    return values(work, f'MODEL_DIR="{work / folder}"', f"TRAIN_STEPS={steps}", *periods, *more)


def losses(folder, collection="train"):
    """{step: loss} that T5X has written for TensorBoard."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    found = {}
    for path in sorted((folder / collection).rglob("events*")):
        events = EventAccumulator(str(path))
        events.Reload()
        found |= {event.step: float(make_ndarray(event.tensor_proto)) for event in events.Tensors("loss")}
    return found


def ours(work, name, steps):
    """Our own training from T5X's initial parameters: {step: loss}, and the parameters after the last step."""
    fit = config()
    part, run = fit.part(name), Run(fit, work / "data", work / "work")
    task = part.task(fit)
    task = dataclasses.replace(task, recipe=dataclasses.replace(task.recipe, num_steps=steps))
    init_key = jax.random.split(jax.random.PRNGKey(0))[0]  # T5X's, for seed 0.
    params = nn.meta.unbox(stage_model.init(task.model, task.layout, init_key))
    warm_start = part.warm_start(run)
    folder = work / f"ours-{name}-{steps}"
    start_here = lambda state: warm_start(state.replace(params=params))  # noqa: E731
    trained = train(task, part.source(run, "train", 0), workdir=folder, config=TrainConfig(log_every=1), identity="x", warm_start=start_here)
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line["loss"] for line in lines if "loss" in line}, trained.state.params


def batch_of(work, name, split):
    fit = config()
    return fit.part(name).source(Run(fit, work / "data", work / "work"), split, int(split == "test"))(0)


def loss_of(name, params, batch):
    """Our loss of a batch, without dropout, in nats per token."""
    return float(config().part(name).task(config()).loss(jax.tree.map(jnp.asarray, params), batch, None)[1]["loss"])


def close(found, expected):
    assert found.keys() == expected.keys()
    np.testing.assert_allclose([found[step] for step in expected], list(expected.values()), rtol=2e-6)


# ---------------------------------------------------------------------------------------------------------------------- Training


@pytest.fixture(scope="module")
def trained(work):
    """T5X's training of the three stages for 5 steps, data=4 x model=2."""
    for name in STAGES:
        finish(start("train", name, *training(work, name, STEPS, "MODEL_PARALLEL=2"), devices=8))
    return work


@pytest.mark.parametrize("name", STAGES)
def test_losses_are_ours_to_six_digits(trained, name):
    expected, params = ours(trained, name, STEPS)
    assert list(expected) == [1, 2, 3, 4, 5] and expected[5] < expected[1]
    close(losses(trained / name), expected)
    assert list(losses(trained / name, f"training_eval/{name}")) == [STEPS]
    # Nothing is padded: T5X counts our parameters.
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    info = (trained / name / "model-info.txt").read_text()
    assert f"Total number of parameters: {count}\n" in info and "qkv_kernel" in info
    assert "partition spec (None, None, None, 'model', None)" in info


def test_continues_on_other_devices(trained):
    """Five steps more, on one device and in two microbatches. Batches go on as in a training without interruption."""
    finish(start("train", "semantic", *training(trained, "semantic", 2 * STEPS, "Trainer.num_microbatches=2")))
    close(losses(trained / "semantic"), ours(trained, "semantic", 2 * STEPS)[0])


def test_two_processes_of_four_devices(work):
    """Parameters are split over the data axis, too."""
    with socket.socket() as sock:
        sock.bind(("localhost", 0))
        address = f"localhost:{sock.getsockname()[1]}"
    options = lambda index: (f"--coordinator_address={address}", "--process_count=2", f"--process_index={index}")  # noqa: E731
    given = training(work, "two", STEPS, "MODEL_PARALLEL=2", "standard_logical_axis_rules.parameter_partitioning_dims=2")
    finish(*(start("train", "coarse", *given, devices=4, options=options(index)) for index in range(2)))
    close(losses(work / "two"), ours(work, "coarse", STEPS)[0])
    assert "partition spec ('model', 'data')" in (work / "two" / "model-info.txt").read_text()


# ---------------------------------------------------------------------------------------------------------------------- Evaluation and inference


def evaluated(folder):
    (path,) = (folder / "inference_eval").glob("*-metrics.jsonl")
    return json.loads(path.read_text().splitlines()[-1])["loss"]


def test_the_loss_of_a_checkpoint_is_that_of_the_converted_weights(trained):
    checkpoint = trained / "fine" / f"checkpoint_{STEPS}"
    finish(start("eval", "fine", *values(trained, f'CHECKPOINT_PATH="{checkpoint}"', f'EVAL_OUTPUT_DIR="{trained / "eval"}"')))
    assert evaluated(trained / "eval") == pytest.approx(loss_of("fine", read_params(checkpoint), batch_of(trained, "fine", "test")), rel=2e-6)


def test_drawn_codes_have_the_likelihood_that_the_model_gives_them(trained):
    checkpoint, out = trained / "coarse" / f"checkpoint_{STEPS}", trained / "infer"
    mode = 'infer.mode="predict_with_aux"'
    finish(start("infer", "coarse", *values(trained, f'CHECKPOINT_PATH="{checkpoint}"', f'INFER_OUTPUT_DIR="{out}"', mode)))
    (path,) = out.glob("*-predict_with_aux.jsonl-00000-of-00001")
    lines = list(map(json.loads, path.read_text().splitlines()))
    codes = np.array([line["prediction"] for line in lines])
    batch = batch_of(trained, "coarse", "test")
    assert codes.shape == (BATCH, 20, 2) and 0 <= codes.min() and codes.max() < 10 and len(np.unique(codes, axis=0)) > 1
    total = -loss_of("coarse", read_params(checkpoint), {**batch, "acoustic": codes}) * codes.size
    assert sum(line["aux"]["scores"] for line in lines) == pytest.approx(total, rel=1e-5)


def test_weights_of_ours_in_t5x_and_tokens_from_records(trained):
    """T5X evaluates our weights on records, and trains on from them."""
    from musiclm_jax.interop.t5x.seqio_tasks import write_records

    fit = config()
    _, params = ours(trained, "semantic", STEPS)
    checkpoint = write_params(params, trained / "ours", step=7)
    files = {split: str(trained / f"{split}.tfrecord") for split in ("train", "test")}
    for split, path in files.items():
        write_records(StageRun(fit, "semantic", str(trained / "data"), str(trained / "work")), path, split=split, num_examples=BATCH)
    records = f"RECORDS={files}"
    given = [records, *(each for each in values(trained) if "DATA" not in each and "WORKDIR" not in each)]
    # Initialization from codebooks reads the work folder.
    out = (f'CHECKPOINT_PATH="{checkpoint}"', f'EVAL_OUTPUT_DIR="{trained / "eval-ours"}"', "StagePart.codebook_init=False")
    finish(start("eval", "semantic", *given, *out, files=("t5x/records.gin",)))
    assert evaluated(trained / "eval-ours") == pytest.approx(loss_of("semantic", params, batch_of(trained, "semantic", "test")), rel=2e-6)
    restore = (f'RestoreCheckpointConfig.path="{checkpoint}"', 'RestoreCheckpointConfig.mode="specific"', "RestoreCheckpointConfig.assignment_map=[]")
    more = (*restore, "RestoreCheckpointConfig.fallback_to_scratch=True", "StagePart.codebook_init=False", "SHUFFLE_TRAIN_EXAMPLES=False", records)
    finish(start("train", "semantic", *training(trained, "on", 8, *more), files=("t5x/records.gin",)))
    close(losses(trained / "on"), {8: loss_of("semantic", params, batch_of(trained, "semantic", "train"))})
