"""Where a training can be watched beside its log: TensorBoard and Weights & Biases, by name (`TrainConfig.trackers`). Neither is needed to train.

WORKDIR/tensorboard/     event files
WORKDIR/wandb/           the run of Weights & Biases; WORKDIR/wandb_id has the name under which a resumed training continues it
"""

from __future__ import annotations

import abc
import dataclasses
import importlib.util
import os
import secrets
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from musiclm_jax.arrays import Float, Int
from musiclm_jax.audio.features import LogMelConfig, log_mel
from musiclm_jax.checks import shown
from musiclm_jax.errors import UserError
from musiclm_jax.files import AnyPath, is_bucket, write_text

# Name -> (the package that it needs, how to get it).
PACKAGES = {"tensorboard": ("tensorboardX", "pip install 'musiclm-jax[tensorboard]'"), "wandb": ("wandb", "pip install wandb")}

# Seconds of audio in a sample.
SAMPLE_SEC = 5.0

# Bars of a histogram: W&B accepts at most 512.
_BARS = 512


@dataclasses.dataclass(frozen=True)
class Clip:
    """Audio, which is shown with its spectrogram. wave: float32 in [-1, 1]."""

    wave: Float[np.ndarray, "N"]
    sample_rate_hz: int

    def spectrogram(self) -> np.ndarray:
        """Log-mel levels as grey values, uint8 [M, T], from -60 dB up, low frequencies below."""
        sizes = {"window_samples": 1024, "num_fft": 1024, "hop_samples": 256, "num_mels": 80}
        mel = LogMelConfig(sample_rate_hz=self.sample_rate_hz, max_hz=self.sample_rate_hz / 2, floor=1e-3, **sizes)
        level = np.asarray(log_mel(jnp.asarray(self.wave)[None], mel))[0].T[::-1]
        return np.clip(255 * (level - np.log(mel.floor)) / np.log(1e3), 0, 255).astype(np.uint8)


@dataclasses.dataclass(frozen=True)
class Codes:
    """Codes of one codebook, in [0, num_codes), of which it is shown how often each occurs."""

    codes: Int[np.ndarray, "n"]
    num_codes: int

    def histogram(self) -> tuple[np.ndarray, np.ndarray]:
        """(counts, edges) of up to _BARS bars over all codes."""
        return np.histogram(self.codes, bins=min(self.num_codes, _BARS), range=(0, self.num_codes))


Sample = Clip | Codes


def codes_by_level(codes: Int[np.ndarray, "T Q"], num_codes: int) -> dict[str, Sample]:
    return {f"codes_level_{level}": Codes(each, num_codes) for level, each in enumerate(codes.T)}


def check_trackers(names: Sequence[str]) -> None:
    """Raises UserError for a tracker that does not exist, or whose package is not installed."""
    if not isinstance(names, (tuple, list)) or not all(name in list(PACKAGES) for name in names):
        raise UserError(f"trackers={shown(names)}: choose of {', '.join(map(repr, PACKAGES))}, as a tuple such as ('tensorboard',)")
    for name in names:
        package, install = PACKAGES[name]
        if importlib.util.find_spec(package) is None:
            raise UserError(f"trackers={shown(names)}: the package {package} is missing; install it with: {install}, or leave {name!r} out")


def open_trackers(names: Sequence[str], workdir: AnyPath, name: str, *, start: int) -> list[Tracker]:
    """The trackers of a training that starts or continues after step `start`. On many processes only the first one has them."""
    if names and is_bucket(workdir):
        raise UserError(f"trackers={names!r}: they write to a local folder, and the work folder is {workdir}: leave them out, or choose a local --workdir")
    return [_TRACKERS[each](workdir, name, start=start) for each in names] if jax.process_index() == 0 else []


class Tracker(abc.ABC):
    @abc.abstractmethod
    def scalars(self, step: int, numbers: Mapping[str, float]) -> None: ...

    @abc.abstractmethod
    def samples(self, step: int, samples: Mapping[str, Sample]) -> None: ...

    @abc.abstractmethod
    def close(self) -> None: ...


class TensorBoard(Tracker):
    """Event files by tensorboardX, which needs no TensorFlow. Events of steps that are taken again are hidden."""

    def __init__(self, workdir: AnyPath, name: str, *, start: int):
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(str(workdir / "tensorboard"), purge_step=start + 1 if start else None)

    def scalars(self, step, numbers):
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def samples(self, step, samples):
        for name, sample in samples.items():
            if isinstance(sample, Clip):
                self._writer.add_audio(name, sample.wave, step, sample_rate=sample.sample_rate_hz)
                self._writer.add_image(f"{name}_spectrogram", sample.spectrogram(), step, dataformats="HW")
            else:
                counts, edges = sample.histogram()
                codes = np.repeat(edges[:-1], counts)
                self._writer.add_histogram(name, codes, step, bins=edges)
        self._writer.flush()

    def close(self):
        self._writer.close()


class WeightsAndBiases(Tracker):
    """A run of the project "musiclm_jax", or of $WANDB_PROJECT. $WANDB_MODE=offline keeps it on this machine."""

    def __init__(self, workdir: AnyPath, name: str, *, start: int):
        import wandb

        self._wandb, known = wandb, workdir / "wandb_id"
        if not known.exists():
            write_text(known, secrets.token_hex(8))
        project = os.environ.get("WANDB_PROJECT", "musiclm_jax")
        self._run = wandb.init(project=project, name=name, dir=str(workdir), id=known.read_text(), resume="allow")

    def scalars(self, step, numbers):
        self._run.log(dict(numbers), step=step)

    def samples(self, step, samples):
        shown = {}
        for name, sample in samples.items():
            if isinstance(sample, Clip):
                shown[name] = self._wandb.Audio(sample.wave, sample_rate=sample.sample_rate_hz)
                shown[f"{name}_spectrogram"] = self._wandb.Image(sample.spectrogram())
            else:
                shown[name] = self._wandb.Histogram(np_histogram=sample.histogram())
        self._run.log(shown, step=step)

    def close(self):
        self._run.finish()


_TRACKERS = {"tensorboard": TensorBoard, "wandb": WeightsAndBiases}
