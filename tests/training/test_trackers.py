"""Watching a training: TensorBoard's files, Weights & Biases by name, traces, MFU; and none of it where it is not asked for."""

import importlib.machinery
import json
import struct
import sys
import types

import jax
import numpy as np
import pytest
from small_streams import stage_layout
from tiny_task import source, tiny

from musiclm_jax.errors import UserError
from musiclm_jax.models.stage import StageConfig
from musiclm_jax.tasks.stage import StageTask
from musiclm_jax.training import cost
from musiclm_jax.training.loop import TrainConfig
from musiclm_jax.training.loop import train as train_task
from musiclm_jax.training.trackers import Clip, Codes, codes_by_level

CLIP = Clip(0.5 * np.sin(np.arange(4800, dtype=np.float32) * 2 * np.pi * 1000 / 24_000), 24_000)


def train(workdir, num_steps=6, **config):
    """A tiny run that is evaluated at steps 3 and 6. The samples get the weights."""
    samples = lambda variables: {"clip": CLIP, "codes": Codes(np.array([0, 2, 2, variables["params"]["up"].shape[1] // 6]), 5)}  # noqa: E731
    options = {"workdir": workdir, "identity": "tiny", "eval_source": source, "samples": samples}
    return train_task(tiny(num_steps), source, config=TrainConfig(log_every=2, eval_every=3, eval_batches=1, **config), **options)


def lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


# -------------------------------------------------------------------- TensorBoard


def events(folder):
    """All (step, tag, kind) in the event files of a folder, in order. A record is its length, a checksum, data, a checksum."""
    from tensorboardX.proto.event_pb2 import Event

    found = []
    for path in sorted(folder.glob("events*"), key=lambda path: path.stat().st_mtime_ns):
        data, at = path.read_bytes(), 0
        while at < len(data):
            (length,) = struct.unpack_from("<Q", data, at)
            event = Event.FromString(data[at + 12 : at + 12 + length])
            at += length + 16
            found += [(event.step, value.tag, value) for value in event.summary.value]
            found += [(event.step, "restart", None)] if event.HasField("session_log") else []
    return found


def test_tensorboard_gets_the_log_and_the_samples(tmp_path):
    pytest.importorskip("tensorboardX")
    pytest.importorskip("PIL")
    train(tmp_path, trackers=("tensorboard",))
    found = events(tmp_path / "tensorboard")
    logged = {(line["step"], name): value for line in lines(tmp_path) for name, value in line.items() if name != "step"}
    scalars = {(step, tag): value.simple_value for step, tag, value in found if value.WhichOneof("value") == "simple_value"}
    assert scalars == pytest.approx(logged) and (3, "eval_loss") in scalars and (6, "tokens_per_sec") in scalars
    samples = [(step, tag, value.WhichOneof("value")) for step, tag, value in found if value.WhichOneof("value") != "simple_value"]
    assert samples == [(step, *each) for step in (3, 6) for each in (("clip", "audio"), ("clip_spectrogram", "image"), ("codes", "histo"))]
    audio, image, codes = (value for step, _, value in found if step == 3 and value.WhichOneof("value") != "simple_value")
    assert audio.audio.sample_rate == 24_000 and audio.audio.length_frames == 4800 and (image.image.height, image.image.width) == CLIP.spectrogram().shape
    assert (codes.histo.num, codes.histo.sum) == (4, 6)
    # A run that continues hides what it takes again.
    train(tmp_path, 8, trackers=("tensorboard",))
    assert (7, "restart", None) in events(tmp_path / "tensorboard")


# -------------------------------------------------------------------- Weights & Biases


class FakeWandb(types.ModuleType):
    """What we use of the package."""

    def __init__(self):
        super().__init__("wandb")
        self.__spec__ = importlib.machinery.ModuleSpec("wandb", None)
        self.runs, self.logged, self.finished = [], [], 0

    def init(self, **options):
        self.runs.append(options)
        return types.SimpleNamespace(log=lambda numbers, step: self.logged.append((step, numbers)), finish=self.finish)

    def finish(self):
        self.finished += 1

    def Audio(self, wave, *, sample_rate):  # noqa: N802
        return ("audio", len(wave), sample_rate)

    def Image(self, pixels):  # noqa: N802
        return ("image", pixels.shape)

    def Histogram(self, *, np_histogram):  # noqa: N802
        return ("histogram", np_histogram[0].tolist())


def test_weights_and_biases_gets_the_same_and_is_continued(tmp_path, monkeypatch):
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    train(tmp_path, trackers=("wandb",))
    assert fake.finished == 1 and fake.runs[0]["project"] == "musiclm_jax" and fake.runs[0]["name"] == "tiny"
    numbers = [(step, each) for step, each in fake.logged if "clip" not in each]
    assert [{"step": step, **each} for step, each in numbers] == lines(tmp_path)
    samples = {"clip": ("audio", 4800, 24_000), "clip_spectrogram": ("image", CLIP.spectrogram().shape), "codes": ("histogram", [1, 0, 3, 0, 0])}
    assert [(step, each) for step, each in fake.logged if "clip" in each] == [(3, samples), (6, samples)]
    train(tmp_path, 8, trackers=("wandb",))
    assert fake.runs[1]["id"] == fake.runs[0]["id"] and fake.runs[1]["resume"] == "allow" and fake.finished == 2


def test_a_tracker_that_is_not_there_is_one_line(monkeypatch):
    with pytest.raises(UserError, match=r"trackers=\('tensorbord',\): choose of 'tensorboard', 'wandb'"):
        TrainConfig(trackers=("tensorbord",))
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"the package tensorboardX is missing; install it with: pip install 'musiclm-jax\[tensorboard\]', or leave"):
        TrainConfig(trackers=("tensorboard",))
    assert TrainConfig().trackers == ()


def test_without_trackers_there_are_no_samples(tmp_path):
    options = {"workdir": tmp_path, "identity": "tiny", "eval_source": source, "config": TrainConfig(eval_batches=1)}
    train_task(tiny(2), source, samples=lambda variables: pytest.fail("made for nobody"), **options)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoints", "metrics.jsonl"]


def test_spectrograms_and_histograms_show_what_is_there():
    grey = CLIP.spectrogram()
    assert grey.dtype == np.uint8 and grey.shape == (80, 19)
    # 1 kHz is 15 of 51.1 mel up to 12 kHz; row 0 is the highest band.
    assert abs(79 - int(grey[:, :15].mean(axis=1).argmax()) - 80 * 15 / 51.1) < 2 and grey[:10, :15].max() < 20
    counts, edges = Codes(np.array([3, 3, 1022, 1023]), 1024).histogram()
    assert len(counts) == 512 and counts[1] == 2 and counts[511] == 2 and (edges[0], edges[-1]) == (0, 1024)
    levels = codes_by_level(np.array([[1, 5], [2, 6]]), 7)
    assert levels.keys() == {"codes_level_0", "codes_level_1"} and levels["codes_level_1"].codes.tolist() == [5, 6]


# -------------------------------------------------------------------- Traces and MFU


def test_steps_10_to_15_are_traced(tmp_path, monkeypatch, capsys):
    calls = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda folder: calls.append(folder))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: calls.append("stop"))
    train(tmp_path / "short", 12, profile=True)  # Ends while it is traced.
    assert calls == [tmp_path / "short" / "profile", "stop"]
    train(tmp_path / "short", 40, profile=True)  # Of this call.
    assert calls[2:] == [tmp_path / "short" / "profile", "stop"] and "a trace of steps 22 to 27" in capsys.readouterr().out
    train(tmp_path / "off", 20)
    assert len(calls) == 4


def test_flops_are_of_the_model_and_not_of_how_it_is_computed():
    sizes = {"dim": 16, "num_layers": 2, "num_heads": 2, "head_dim": 8, "mlp_dim": 32}
    plain, remat = (StageTask("semantic", StageConfig(**sizes, remat=remat), stage_layout("semantic")) for remat in (False, True))
    key = jax.eval_shape(lambda: jax.random.key(0))
    state = jax.eval_shape(plain.init_state, key)
    batch = {"mulan": jax.ShapeDtypeStruct((2, 3), np.int32), "semantic": jax.ShapeDtypeStruct((2, 5), np.int32)}
    traced = lambda task: cost.count_flops(jax.make_jaxpr(task.train_step)(state, batch, key).jaxpr)  # noqa: E731
    assert cost.step_flops(remat, state, batch) == cost.step_flops(plain, state, batch) == traced(plain) < traced(remat)


@pytest.mark.parametrize(
    "kind, peak", [("NVIDIA H100 80GB HBM3", 989e12), ("NVIDIA H100 PCIe", 756e12), ("TPU v5 lite", 197e12), ("TPU v5p", 459e12), ("cpu", None)]
)
def test_each_device_has_its_peak(kind, peak):
    assert cost.peak_flops(kind) == peak


def test_mfu_is_logged_where_the_peak_is_known(tmp_path, monkeypatch):
    assert "mfu" not in train(tmp_path / "cpu").metrics
    monkeypatch.setitem(cost.PEAK_FLOPS, "cpu", 1e6)
    found = train(tmp_path / "known").metrics
    flops = cost.step_flops(tiny(6), jax.eval_shape(tiny(6).init_state, jax.random.key(0)), source(0))
    # [8, 8] x [8, 12] x [12, 4]: three products of each layer, but for the gradient of the input.
    assert flops == 2 * 8 * (2 * 8 * 12 + 3 * 12 * 4)
    assert found["mfu"] == pytest.approx(found["steps_per_sec"] * flops / 1e6 / jax.device_count())
