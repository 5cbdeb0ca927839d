"""How much of a caption its tokens contain: `python benchmarks/token_probes.py CORPUS [BUNDLE]`.

Fits linear probes on training clips and evaluates them on held-out clips, for lead instrument, drums, mode and tempo. Their inputs are the MuLan tokens of a
caption, 10 s of semantic tokens of real clips, and 10 s of semantic tokens that the semantic stage generates for their captions. Each accuracy is printed
with its chance level, the accuracy of the same predictions for the captions of other clips. What the tokens do not contain, no later stage can restore.
"""

import sys
from pathlib import Path

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from musiclm_jax import MusicLM, audio
from musiclm_jax.evaluation.clips import choose_prompts, read_clips, with_ground_truth
from musiclm_jax.evaluation.statements import named_attributes
from musiclm_jax.generation.request import clip_keys

NUM_TRAIN, NUM_CAPTIONS, SECONDS, BATCH = 900, 100, 10.0, 20
ATTRIBUTES = ("instrument", "drums", "mode", "tempo")


def semantic_features(tokens: np.ndarray, num_codes: int) -> np.ndarray:
    """Features of a sequence of semantic tokens: frequency of each token, rate of changes, and autocorrelation of changes up to 3 s."""
    changes = (tokens[1:] != tokens[:-1]).astype(float)
    centred = changes - changes.mean()
    recurrence = np.correlate(centred, centred, "full")[len(centred) - 1 :][:80]
    return np.concatenate([np.sqrt(np.bincount(tokens, minlength=num_codes) / len(tokens)), recurrence / (recurrence[0] + 1e-6), [changes.mean()]])


def one_hot(tokens: np.ndarray, num_codes: int) -> np.ndarray:
    return np.eye(num_codes)[tokens].reshape(len(tokens), -1)


def probe(features: np.ndarray, clips: list, names: list, penalty: float):
    """Fits one classifier for each attribute, on the rows whose caption names it. penalty: the inverse regularization strength."""
    fitted = {}
    for attribute in ATTRIBUTES:
        rows = [i for i, named in enumerate(names) if attribute in named]
        labels = [str(clips[i].attributes[attribute]) for i in rows]
        fitted[attribute] = make_pipeline(StandardScaler(), LogisticRegression(C=penalty, max_iter=1000)).fit(features[rows], labels)
    return fitted


def report(title: str, fitted, features: np.ndarray, clips: list, names: list) -> None:
    cells = []
    for attribute, model in fitted.items():
        rows = [i for i, named in enumerate(names) if attribute in named]
        truth = np.array([str(clips[i].attributes[attribute]) for i in rows])
        predicted = model.predict(features[rows])
        agree = predicted[:, None] == truth
        chance = (agree.sum() - np.trace(agree)) / (agree.size - len(rows))
        cells.append(f"{np.trace(agree) / len(rows):.2f} ({chance:.2f})")
    print(f"{title:34}" + "".join(f"{cell:>15}" for cell in cells), flush=True)


def main(data: Path, bundle: str = "demo") -> None:
    model = MusicLM.from_pretrained(bundle)
    config, samples = model.config, round(SECONDS * model.config.audio.sample_rate_hz)
    every = with_ground_truth(read_clips(data))
    train = [clip for clip in every if clip.split == "train"][:NUM_TRAIN]
    by_name = {clip.file_name: clip for clip in every}
    prompts = choose_prompts(every, num_captions=NUM_CAPTIONS, rng=np.random.default_rng([0, 0]))
    held_out, named = [by_name[prompt.file_name] for prompt in prompts], [prompt.named for prompt in prompts]
    print(f"{'accuracy (chance)':34}" + "".join(f"{attribute:>15}" for attribute in ATTRIBUTES))

    pairs = [(clip, caption) for clip in train for caption in clip.captions]
    mulan = lambda captions: one_hot(model.mulan.text_tokens(captions), config.mulan.num_codes)  # noqa: E731
    fitted = probe(mulan([caption for _, caption in pairs]), [clip for clip, _ in pairs], [named_attributes(caption) for _, caption in pairs], 1.0)
    captions = [prompt.caption for prompt in prompts]
    report("MuLan tokens of captions", fitted, mulan(captions), held_out, named)

    def real(clips: list) -> np.ndarray:
        rows = []
        for first in range(0, len(clips), BATCH):
            waves = [audio.read(data / clip.file_name)[:samples] for clip in clips[first : first + BATCH]]
            rows += list(model.semantic.encode(np.stack(waves)))
        return np.stack([semantic_features(row, config.w2v_bert.num_clusters) for row in rows])

    # Every clip has all attributes, whatever its caption names.
    fitted = probe(real(train), train, [frozenset(ATTRIBUTES)] * len(train), 0.01)
    report("semantic tokens of real clips", fitted, real(held_out), held_out, named)
    streams, steps = {"mulan": model.mulan.text_tokens(captions)}, config.audio.semantic_tokens(SECONDS)
    drawn = model.draw_stage(config.stage("semantic"), streams, steps=steps, keys=clip_keys(captions, seed=0))[..., 0]
    drawn = np.stack([semantic_features(row, config.w2v_bert.num_clusters) for row in drawn])
    report("semantic tokens of the stage", fitted, drawn, held_out, named)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
