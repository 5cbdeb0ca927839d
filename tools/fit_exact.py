"""Fits the estimators of `musiclm_jax/evaluation/exact.py` on clips of the synthetic corpus, and says how often they are right on others.

    python tools/fit_exact.py

It takes about two minutes on two cores.
"""

import json
import multiprocessing
from pathlib import Path

import numpy as np

from musiclm_jax.corpus import render_clip
from musiclm_jax.corpus.synthesized.clip import SynthesizedCorpus
from musiclm_jax.evaluation import exact
from musiclm_jax.evaluation.estimators import KEYS, METERS, SAMPLE_RATE_HZ, TEMPI_BPM, ChoiceModel, Features, degrade, extract, fit_choice

SEED, CLIPS, SECONDS = 77, 500, 10
OUT = Path(exact.__file__).parent / "weights" / exact.WEIGHTS


def read(index: int) -> tuple[str, dict, list[Features]]:
    """The split and the attributes of a clip, and the features of 10 s of it, as they are and degraded."""
    clip, rng = render_clip(SynthesizedCorpus(SEED), index), np.random.default_rng(index)
    start = int(rng.integers(len(clip.wave) - SECONDS * SAMPLE_RATE_HZ))
    wave = clip.wave[start : start + SECONDS * SAMPLE_RATE_HZ].copy()
    return clip.split, clip.attributes, [extract(wave), extract(degrade(wave, rng=rng))]


def fit(pairs: list[tuple[dict, Features]]) -> dict[str, ChoiceModel]:
    bpm = np.array([truth["tempo_bpm"] for truth, _ in pairs])
    near = np.abs(np.log(TEMPI_BPM / bpm[:, None]))
    key_is = np.array([[(truth["tonic"], truth["mode"]) == key for key in KEYS] for truth, _ in pairs])
    meter_is = np.array([[truth["meter"] == meter for meter in METERS] for truth, _ in pairs])
    meters = np.stack([features.meters[at] for (_, features), at in zip(pairs, near.argmin(axis=1), strict=True)])
    # As often in either meter, which the corpus is not.
    each = [np.flatnonzero(meter_is[:, column]) for column in range(len(METERS))]
    even = np.concatenate([np.resize(rows, max(map(len, each))) for rows in each])
    return {
        "tempo": fit_choice(np.stack([features.tempi for _, features in pairs]), near < 0.025),
        "key": fit_choice(np.stack([features.keys for _, features in pairs]), key_is, penalty=1e-2),
        "meter": fit_choice(meters[even], meter_is[even]),
    }


def report(pairs: list[tuple[dict, Features]], models: dict[str, ChoiceModel]) -> None:
    right: dict[str, list[bool]] = {}
    for truth, features in pairs:
        key = f"{exact._TONICS[truth['tonic']]} {truth['mode']}"
        wishes, facts = (
            exact.ExactWishes(float(np.clip(truth["tempo_bpm"], *TEMPI_BPM[[0, -1]])), key, truth["meter"]),
            exact.measure_features(features, models),
        )
        missed = wishes.missed(facts)
        for name in ("bpm", "key"):
            right.setdefault(name, []).append(name not in missed)
        right.setdefault(f"meter {truth['meter']}", []).append("meter" not in missed)
    print(", ".join(f"{name} {np.mean(values):.2f} of {len(values)}" for name, values in sorted(right.items())))


if __name__ == "__main__":
    with multiprocessing.Pool() as pool:
        clips = pool.map(read, range(CLIPS))
    select = lambda held_out: [(truth, each) for split, truth, features in clips for each in features if (split != "train") == held_out]  # noqa: E731
    models = fit(select(False))
    report(select(True), models)
    OUT.write_text(json.dumps({name: [round(float(weight), 5) for weight in model.weights] for name, model in models.items()}) + "\n")
