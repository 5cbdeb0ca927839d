"""Tags that musicnn gives clips of the sampled corpus: `python benchmarks/sampled_tags.py [CLIPS [SEED]]`.

For each of some leads, the first CLIPS composed clips (10) that it leads are played. The first table has the share of them in which musicnn, which was
trained on recordings of people, gives a tag of the lead among its three strongest of 50: for clips without drums, and for those with drums. Then, for each
kit, the mean of its tag "drums" in clips with drums, and in the same clips without the notes of the drums. Last the speed, in CPU time of its one thread.
"""

import collections
import dataclasses
import itertools
import sys
import time

import numpy as np
import soxr

from musiclm_jax.corpus.clip import SAMPLE_RATE_HZ
from musiclm_jax.corpus.sampled.compose import compose_clip
from musiclm_jax.corpus.sampled.play import play
from musiclm_jax.corpus.sampled.score import Score
from musiclm_jax.evaluation.embeddings import load_musicnn

# Lead -> the tags that name it.
LEADS = {
    "piano": ("piano",),
    "acoustic guitar": ("guitar",),
    "electric guitar": ("guitar",),
    "flute": ("flute",),
    "violin": ("violin", "strings"),
    "strings": ("strings", "violin"),
    "cello": ("cello", "strings"),
    "harpsichord": ("harpsichord",),
    "harp": ("harp",),
    "sitar": ("sitar",),
    "synth lead": ("synth", "electronic"),
    "choir": ("choir", "choral", "voice", "vocal", "vocals"),
}
MOST_SCANNED = 20_000  # Clips among which the leads are looked for.


def scores(num: int, seed: int) -> list[tuple[int, Score]]:
    """(index, score) of the first `num` clips of each lead."""
    left, found = collections.Counter(dict.fromkeys(LEADS, num)), []
    for index in itertools.takewhile(lambda _: any(left.values()), range(MOST_SCANNED)):
        score = compose_clip(seed, index)
        if left[score.attributes.instrument]:
            left[score.attributes.instrument] -= 1
            found.append((index, score))
    return found


def tags(wave: np.ndarray) -> dict[str, float]:
    """Mean probabilities over a clip."""
    judge = load_musicnn()
    logits = judge.logits(soxr.resample(wave, SAMPLE_RATE_HZ, judge.sample_rate_hz))
    return dict(zip(judge.labels, (1 / (1 + np.exp(-logits))).mean(axis=0)))


def top(found: dict[str, float], num: int = 3) -> list[str]:
    return sorted(found, key=found.get, reverse=True)[:num]


def share(hits: list[bool]) -> str:
    return f"{sum(hits)} of {len(hits)}" if hits else ""


def main(num: int = 10, seed: int = 0) -> None:
    hits, drums, speeds = collections.defaultdict(list), collections.defaultdict(list), collections.defaultdict(list)
    best = collections.defaultdict(collections.Counter)
    clips = scores(num, seed)
    for index, score in clips[:5]:
        play(score, seed=seed, index=index)  # The soundfonts are loaded.
    for index, score in clips:
        began = time.thread_time()
        wave = play(score, seed=seed, index=index)["mix"]
        speeds[len({note.part for note in score.notes})].append(score.length_sec / (time.thread_time() - began))
        found, attributes = tags(wave), score.attributes
        hits[attributes.instrument, attributes.drums].append(not set(LEADS[attributes.instrument]).isdisjoint(top(found)))
        best[attributes.instrument].update(top(found))
        if attributes.drums:
            without = dataclasses.replace(score, notes=tuple(note for note in score.notes if note.part != "drums"))
            drums[attributes.kit].append((found["drums"], tags(play(without, seed=seed, index=index)["mix"])["drums"]))
    print("| lead | tag in the top 3, without drums | with drums | most often |\n|---|---|---|---|")
    for lead in LEADS:
        most = ", ".join(f"{tag} {count}" for tag, count in best[lead].most_common(4))
        print(f"| {lead} | {share(hits[lead, False])} | {share(hits[lead, True])} | {most} |")
    print("\n| kit | clips | tag of drums | the same without drums |\n|---|---|---|---|")
    for kit, pairs in (*drums.items(), ("all", list(itertools.chain(*drums.values())))):
        print(f"| {kit} | {len(pairs)} | {np.mean([pair[0] for pair in pairs]):.3f} | {np.mean([pair[1] for pair in pairs]):.3f} |")
    print("\n| parts | clips | times real time, median | slowest |\n|---|---|---|---|")
    for parts, times in sorted(speeds.items()):
        print(f"| {parts} | {len(times)} | {np.median(times):.0f} | {min(times):.0f} |")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
