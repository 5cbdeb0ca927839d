"""Token streams without models, so that a work folder is made in seconds, and T5X's program in a process of its own."""

import dataclasses
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from musiclm_jax.data.token_store import TokenArray
from musiclm_jax.folders import gin_folder
from musiclm_jax.parts.part import PREPARE, FitConfig, Part, Run, Step, TokenStream, Work, save_array
from musiclm_jax.parts.prepare import PreparePart
from musiclm_jax.parts.stage import StagePart
from musiclm_jax.specs import Stream

HERE = Path(__file__).parent
STREAMS = (Stream("mulan", 2, 6), Stream("semantic", 1, 8, 25), Stream("acoustic", 4, 10, 50))


@dataclasses.dataclass(frozen=True)
class PerClip:
    """[clips, Q] tokens of a stream without a rate."""

    codes: np.ndarray

    def crops(self, clips, starts_sec, crop_sec, *, rng, text_share):
        del starts_sec, crop_sec, rng, text_share
        return self.codes[np.asarray(clips)].astype(np.int32)


@dataclasses.dataclass(frozen=True)
class TokensPart(Part):
    """Writes random tokens of all streams, each code near the one before it."""

    @property
    def name(self):
        return "tokens"

    def steps(self, fit):
        return (Step(self.name, "drawing", self._draw, tuple(f"{stream.name}.npy" for stream in STREAMS), needs=(PREPARE,)),)

    def streams(self, fit):
        codebooks = lambda stream: lambda run: np.random.default_rng(1).normal(size=(stream.levels, stream.codes, 3)).astype(np.float32)  # noqa: E731
        return tuple(TokenStream(stream, (self.name,), lambda run, stream=stream: self._open(run, stream), codebooks(stream)) for stream in STREAMS)

    def _open(self, run: Run, stream: Stream):
        path = run.folder(self.name) / f"{stream.name}.npy"
        return TokenArray.open(path, run.clips, rate_hz=stream.rate_hz, spec=run.config.model.audio) if stream.rate_hz else PerClip(np.load(path))

    def _draw(self, run: Run, work: Work):
        rng, spec = np.random.default_rng(0), run.config.model.audio
        for stream in STREAMS:
            steps = [-(-clip.length // spec.semantic_samples) * stream.rate_hz // 25 if stream.rate_hz else 1 for clip in run.clips.clips]
            codes = np.cumsum(rng.integers(-1, 2, (sum(steps), stream.levels)), axis=0) % stream.codes
            codes = codes[:, 0] if stream.rate_hz and stream.levels == 1 else codes
            save_array(work.folder / f"{stream.name}.npy", codes.astype(np.int16))
        return {}


def with_tokens(config: FitConfig) -> FitConfig:
    """The config with this part in place of those that make tokens by training."""
    stages = tuple(part for part in config.parts if isinstance(part, StagePart))
    return dataclasses.replace(config, parts=(PreparePart(), TokensPart(), *stages))


def start(command: str, stage: str, *bindings: str, devices: int = 1, files: tuple[str, ...] = (), options: tuple[str, ...] = ()) -> subprocess.Popen:
    """Starts one of T5X's programs on a stage, with `devices` virtual CPU devices. bindings: "NAME=VALUE"."""
    gin = [f"--gin_file={file}" for file in (HERE / "toy.gin", f"t5x/{stage}.gin", HERE / "toy_parts.gin", *files)]
    env = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} {os.environ.get('XLA_FLAGS', '')}",
        "PYTHONPATH": os.pathsep.join([str(gin_folder().parent), str(HERE)]),
        "TF_CPP_MIN_LOG_LEVEL": "2",
    }
    words = [sys.executable, "-m", "musiclm_jax.interop.t5x", command, *gin, *(f"--gin.{each}" for each in bindings), *options]
    output = tempfile.TemporaryFile("w+")  # Not a pipe: one process may wait for another while nobody reads what it prints.
    process = subprocess.Popen(words, env=env, stdout=output, stderr=subprocess.STDOUT)
    process.stdout = output
    return process


def finish(*processes: subprocess.Popen) -> None:
    """Waits for processes, of which none may fail."""
    for process in processes:
        failed = process.wait(timeout=1200)
        process.stdout.seek(0)
        assert not failed, process.stdout.read()[-4000:]
