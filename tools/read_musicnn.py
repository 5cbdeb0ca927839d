"""Reads the weights of musicnn out of its wheel, once, and records what the original says of 20 clips.

    python3.11 -m venv tf && tf/bin/pip install "tensorflow-cpu==2.15.0" "numpy<2" librosa safetensors
    tf/bin/pip install --no-deps musicnn==0.1.0
    tf/bin/python tools/read_musicnn.py

It needs an environment of its own: TensorFlow 2.15 wants NumPy 1, and musicnn states versions that no longer install. It writes musicnn.safetensors into
`musiclm_jax/evaluation/weights/`, which the package ships, and `tests/evaluation/musicnn_original.npz`, with which the tests compare the network in JAX.
musicnn is by Jordi Pons and Xavier Serra (arXiv 1909.06654), under the ISC licence, whose text is in the header of the safetensors file.
"""

import importlib.metadata
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parent.parent
WEIGHTS = ROOT / "musiclm_jax" / "evaluation" / "weights" / "musicnn.safetensors"
RECORDED = ROOT / "tests" / "evaluation" / "musicnn_original.npz"
RATE_HZ, NUM_CLIPS = 16_000, 20
# Names in the checkpoint, in the order in which its graph makes its layers.
CONVOLUTIONS = ("timbral_0", "timbral_1", "temporal_0", "temporal_1", "temporal_2", "middle_0", "middle_1", "middle_2")
NORMS = ("input_norm", *(f"{name}_norm" for name in CONVOLUTIONS), "pool_norm", "dense_norm")
EPSILON = 1e-3  # tf.layers.batch_normalization's.


def clips():
    """20 clips of 3 to 7 s at 16 kHz: chords that decay, with beats of noise, from very soft to loud."""
    for i in range(NUM_CLIPS):
        rng = np.random.default_rng(i)
        time = np.arange(round((3 + 0.2 * i) * RATE_HZ)) / RATE_HZ
        beat_sec = rng.uniform(0.3, 0.9)
        decay = np.exp(-(time % beat_sec) / rng.uniform(0.05, 0.6))
        chord = sum(np.sin(2 * np.pi * 110 * 2 ** (step / 12) * n * time) / n for step in rng.integers(0, 36, 3) for n in range(1, rng.integers(2, 9)))
        wave = chord * decay + rng.uniform(0, 1.5) * rng.standard_normal(len(time)) * np.exp(-(time % (beat_sec / 2)) / 0.02)
        yield (10 ** rng.uniform(-3, -0.1) * wave / np.abs(wave).max()).astype(np.float32)


def read_weights(read) -> dict[str, np.ndarray]:
    """The arrays by our names. A batch norm becomes the scale and the bias that its statistics leave of it. read: name -> array of the checkpoint."""
    arrays = {}
    for i, name in enumerate(NORMS):
        theirs = "batch_normalization" + (f"_{i}" if i else "")
        gamma, beta, mean, variance = (read(f"{theirs}/{part}").astype(np.float64) for part in ("gamma", "beta", "moving_mean", "moving_variance"))
        scale = gamma / np.sqrt(variance + EPSILON)
        arrays[f"{name}/scale"], arrays[f"{name}/bias"] = scale, beta - mean * scale
    for i, name in enumerate((*CONVOLUTIONS, "dense", "tags")):
        theirs = "conv2d" if i < len(CONVOLUTIONS) else "dense"
        number = i % len(CONVOLUTIONS)
        for part in ("kernel", "bias"):
            arrays[f"{name}/{part}"] = read(theirs + (f"_{number}" if number else "") + f"/{part}")
        if name.startswith("middle"):
            arrays[f"{name}/kernel"] = arrays[f"{name}/kernel"][:, :, 0]  # [T, D, 1, D'] -> [T, D, D']: a convolution over time.
    return {name: np.ascontiguousarray(value, np.float32) for name, value in arrays.items()}


def main() -> None:
    import librosa
    import musicnn
    import safetensors.numpy
    import soundfile
    import tensorflow
    from musicnn import extractor

    reader = tensorflow.compat.v1.train.NewCheckpointReader(str(Path(musicnn.__file__).parent / "MTT_musicnn") + "/")
    package = importlib.metadata.distribution("musicnn")
    licence = next(file for file in package.files if file.name == "LICENSE.md").read_text()
    metadata = {"source": f"musicnn {package.version} on PyPI, model MTT_musicnn, arXiv 1909.06654", "licence": "ISC", "notice": licence}
    WEIGHTS.parent.mkdir(exist_ok=True)
    safetensors.numpy.save_file(read_weights(reader.get_tensor), WEIGHTS, metadata)

    extractor.config.BATCH_SIZE = 64  # With its 1, the extractor returns the features of the first patch for all patches of a clip.
    tags, features = [], []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.wav"
        for wave in clips():
            soundfile.write(path, wave, RATE_HZ, subtype="FLOAT")
            taggram, labels, layers = extractor.extractor(str(path), model="MTT_musicnn")
            tags.append(taggram)
            features.append(layers["penultimate"])
    counts = [len(rows) for rows in tags]
    versions = f"musicnn {package.version}, tensorflow {tensorflow.__version__}, librosa {librosa.__version__}, numpy {np.__version__}"
    np.savez_compressed(RECORDED, counts=counts, tags=np.concatenate(tags), features=np.concatenate(features), names=labels, versions=versions)
    print(f"{WEIGHTS.name}: {WEIGHTS.stat().st_size} bytes; {RECORDED.name}: {sum(counts)} patches, {RECORDED.stat().st_size} bytes ({versions})")


if __name__ == "__main__":
    main()
