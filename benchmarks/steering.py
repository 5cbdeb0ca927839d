"""How often music follows what it is asked for: exclusions of drums, mixtures, exact wishes, and loudness, of the packaged model.

    python benchmarks/steering.py

Drums are estimated as in `musiclm evaluate adherence`, by a classifier of 250 clips of the synthetic corpus, which is made first; the rest by
`musiclm_jax/evaluation/exact.py`. It takes about 30 minutes on two cores; `--only` chooses a part.
"""

from __future__ import annotations

import argparse

import numpy as np

from musiclm_jax.audio.loudness import loudness_lufs
from musiclm_jax.corpus import render_clip
from musiclm_jax.corpus.synthesized.clip import SynthesizedCorpus
from musiclm_jax.evaluation.estimators import SAMPLE_RATE_HZ, extract, fit_spectral_classifier
from musiclm_jax.evaluation.exact import ExactWishes, make_exactly, measure, word_prompt
from musiclm_jax.musiclm import MusicLM

SEED, FIT_CLIPS, SECONDS = 78, 250, 10
# A prompt that the packaged model hardly ever plays without drums.
LOUD = "a loud piano melody at a fast tempo"
PIANO = "a piano melody"
DRUMS = ("with drums", "without drums")


def fit_drums():
    """A classifier of drums from the timbre of 10 s."""
    clips = [render_clip(SynthesizedCorpus(SEED), index) for index in range(FIT_CLIPS)]
    features = np.stack([extract(clip.wave[: SECONDS * SAMPLE_RATE_HZ]).timbre for clip in clips])
    return fit_spectral_classifier(features, [clip.attributes["drums"] for clip in clips])


def exclusions(musiclm: MusicLM, count: int) -> None:
    drums = fit_drums()
    asked = {
        LOUD: {},
        f"{LOUD} with drums": {},
        f"{LOUD} without drums": {},
        f"{LOUD} with no drums": {},
        f"{LOUD}, no drums": {},
        f"{LOUD}, excluded: drums": {"without": ["drums"]},
    }
    print(f"number of clips in which the classifier finds drums, of {count} clips of {SECONDS} s, with one candidate and one draft")
    for text, options in asked.items():
        prompt = text.split(", excluded")[0]
        waves = musiclm.generate([prompt], seconds=SECONDS, num_samples=count, num_candidates=1, num_drafts=1, **options).wave
        heard = drums.predict(np.stack([extract(wave).timbre for wave in waves]))
        print(f"{int(np.sum(heard)):4}  {text}", flush=True)


def mixtures(musiclm: MusicLM, count: int) -> None:
    """The mean cosine of clips of a mixture with the text of its second prompt, less that with the first."""
    one, two = "a calm slow flute melody in a major key", "a fast loud synth melody in a minor key with drums"
    print(f"cosine with the second prompt, less that with the first, of {count} clips: {one!r} and {two!r}")
    texts = musiclm.mulan.embed_text([one, two])
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        prompt = f"{1 - share}: {one} | {share}: {two}"
        waves = musiclm.generate([prompt], seconds=SECONDS, num_samples=count, num_candidates=1, num_drafts=1).wave
        near = musiclm.mulan.embed_audio(waves) @ texts.T
        print(f"{share:5.2f}  {np.mean(near[:, 1] - near[:, 0]):6.3f}", flush=True)


def exact(musiclm: MusicLM, count: int) -> None:
    """How many of some clips meet exact wishes, chosen among the candidates of up to 3 tries, and of one candidate of the prompt alone."""
    asked = [ExactWishes(bpm=96), ExactWishes(key="A minor"), ExactWishes(meter="3/4"), ExactWishes(96, "A minor")]
    seeds, few = range(max(1, count // 4)), {"seconds": SECONDS, "num_drafts": 1}
    print(f"of {len(seeds)} clips: meet the wishes with 3 tries of 12 candidates, with one candidate without the wishes")
    for wishes in asked:
        prompt = word_prompt(musiclm, PIANO, wishes)
        clips = [make_exactly(musiclm, prompt, wishes, seed=seed, tries=3, num_candidates=12, **few) for seed in seeds]
        plain = [musiclm.generate([PIANO], seed=seed, num_candidates=1, **few).wave[0] for seed in seeds]
        met = sum(not clip.missed for clip in clips), sum(not wishes.missed(measure(wave)) for wave in plain)
        print(f"{met[0]:4} {met[1]:4}  {', '.join(wishes.words())}", flush=True)


def loudness(musiclm: MusicLM, count: int) -> None:
    """The loudness of clips of 10 s, and of the same clips with 20 s."""
    prompts = [f"a {mood} {voice} melody {drums}" for mood in ("calm", "fast loud") for voice in ("piano", "flute", "organ", "synth") for drums in DRUMS]
    rate = musiclm.config.audio.sample_rate_hz
    for seconds in (SECONDS, 2 * SECONDS):
        waves = musiclm.generate(prompts, seconds=seconds, num_candidates=1, num_drafts=1).wave
        found = sorted(loudness_lufs(wave, sample_rate_hz=rate) for wave in waves)
        print(f"{len(waves)} clips of {seconds} s: " + " ".join(f"{value:.1f}" for value in found) + " LUFS", flush=True)


ALL = (exclusions, mixtures, exact, loudness)

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=20, help="clips of each kind")
    parser.add_argument("--only", choices=[each.__name__ for each in ALL])
    arguments = parser.parse_args()
    model = MusicLM.from_pretrained("demo")
    for measure_of in ALL:
        if arguments.only in (None, measure_of.__name__):
            measure_of(model, arguments.count)
