"""Makes the audio samples and the spectrogram picture in docs/samples/ with the packaged model: `python docs/samples.py` (needs matplotlib)."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import soundfile

from musiclm_jax import MusicLM
from musiclm_jax.audio.features import LogMelConfig, log_mel

PROMPTS = {
    "calm-piano-minor": "a calm piano melody in a minor key",
    "fast-synth-drums": "a fast synth lead dance tune in a major key with a drum kit",
}
FOLDER = Path(__file__).parent / "samples"


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    music = MusicLM.from_pretrained("demo").generate(list(PROMPTS.values()), seconds=10, seed=0)
    mels = np.asarray(log_mel(music.wave, LogMelConfig(window_samples=2048, num_fft=2048, num_mels=128, floor=1e-3)))
    figure, axes = plt.subplots(len(PROMPTS), 1, figsize=(10, 6), constrained_layout=True)
    for name, prompt, wave, mel, axis in zip(PROMPTS, PROMPTS.values(), music.wave, mels, axes, strict=True):
        soundfile.write(FOLDER / f"{name}.flac", wave, music.sample_rate_hz)
        axis.imshow(mel.T, origin="lower", aspect="auto", extent=(0, len(wave) / music.sample_rate_hz, 0, mel.shape[-1]))
        axis.set(title=prompt, xlabel="seconds", ylabel="mel band")
    figure.savefig(FOLDER / "spectrograms.png", dpi=80)


if __name__ == "__main__":
    main()
