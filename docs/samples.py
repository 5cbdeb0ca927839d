"""Makes the audio samples and the spectrogram picture in docs/samples/ with the packaged model: `python docs/samples.py` (needs matplotlib).

The ten clips of PROMPTS have the seed 0, as the others do. None of them was selected.
"""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import soundfile

from musiclm_jax import MusicLM
from musiclm_jax.audio.features import LogMelConfig, log_mel

PIANO, SYNTH, FLUTE = "a calm piano melody in a minor key", "a fast synth lead dance tune in a major key with a drum kit", "a slow flute melody"
PROMPTS = {
    "calm-piano-minor": PIANO,
    "fast-synth-drums": SYNTH,
    "strings": "slow melancholic strings",
    "waltz": "a cheerful flute waltz",
    "campfire": "an acoustic guitar by a campfire, no drums",
    "lullaby": "a music box lullaby",
    "sunday": "music for a rainy Sunday",
    "lofi": "lo-fi beats to study to",
    "halloween": "spooky halloween organ",
    "techno": "hard techno for a warehouse party",
}
LOUD = "a loud piano melody at a fast tempo"
FOLDER = Path(__file__).parent / "samples"


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    musiclm = MusicLM.from_pretrained("demo")
    music = musiclm.generate(list(PROMPTS.values()), seconds=10, seed=0)
    draw(music)
    first = music.wave[0]
    streams = {
        **{name: [wave[None]] for name, wave in zip(PROMPTS, music.wave, strict=True)},
        # docs/steering.md.
        "story": musiclm.stream(story=[(0, PIANO), (8, SYNTH), (16, FLUTE)], fade=2, seconds=24),
        "between": musiclm.stream(f"0.5: {PIANO} | 0.5: {SYNTH}", seconds=10),
        "loud-piano": musiclm.stream(LOUD, seconds=10),
        "loud-piano-without-drums": musiclm.stream(LOUD, seconds=10, without=["drums"]),
        "continued": musiclm.stream(SYNTH, beginning=first[:120_000], seconds=15),
        "alike": musiclm.stream(like=first, seconds=10),
        "anew": musiclm.stream(FLUTE, resynthesize=first),
        "any": musiclm.stream(seconds=10),
    }
    for name, pieces in streams.items():
        soundfile.write(FOLDER / f"{name}.ogg", np.concatenate([piece[0] for piece in pieces]), music.sample_rate_hz, format="OGG", subtype="VORBIS")
        print(name, flush=True)


def draw(music) -> None:
    mels = np.asarray(log_mel(music.wave, LogMelConfig(window_samples=2048, num_fft=2048, num_mels=128, floor=1e-3)))
    figure, axes = plt.subplots(len(PROMPTS) // 2, 2, figsize=(14, 12), constrained_layout=True)
    for prompt, wave, mel, axis in zip(PROMPTS.values(), music.wave, mels, axes.flat, strict=True):
        axis.imshow(mel.T, origin="lower", aspect="auto", extent=(0, len(wave) / music.sample_rate_hz, 0, mel.shape[-1]))
        axis.set(title=prompt, xlabel="seconds", ylabel="mel band")
    figure.savefig(FOLDER / "spectrograms.png", dpi=60)


if __name__ == "__main__":
    main()
