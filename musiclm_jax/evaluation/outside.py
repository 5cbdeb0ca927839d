"""Judges from outside, with weights that the user has: CLAP, EnCodec and MERT through transformers, AudioSet's classes by AST and PaSST, and VGGish.

transformers' models are given as a folder, or by their name on the hub (`interop/hub.py`). None of their code is executed: MERT is loaded as the HuBERT that it
is. All of them run in PyTorch on the CPU, but VGGish and PaSST, which run in JAX. SavedModels of TensorFlow are in `evaluation/saved.py`.
"""

from __future__ import annotations

import dataclasses
import functools
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from musiclm_jax import bundle
from musiclm_jax.arrays import Float
from musiclm_jax.errors import UserError, unreadable
from musiclm_jax.evaluation.embeddings import batched, pieces, windows
from musiclm_jax.evaluation.extras import extra
from musiclm_jax.interop import hub
from musiclm_jax.models import passt, vggish

_HUB = {
    "clap": "laion/larger_clap_music",
    "encodec": "facebook/encodec_24khz",
    "mert": "m-a-p/MERT-v1-95M",
    "ast": "MIT/ast-finetuned-audioset-10-10-0.4593",
}
_EXTRA = "judges"
_pretrained = functools.partial(hub.load, of=_EXTRA, remedy="download it, and name its folder with --weights")


# ---------------------------------------------------------------------------------------------------------------------- CLAP


@dataclasses.dataclass(frozen=True, eq=False)
class ClapJudge:
    """CLAP (arXiv 2211.06687): embeddings of windows of 10 s, one every second, as in fadtk but for its padded last windows; and of clips and texts."""

    model: Any
    features: Any
    tokenizer: Any
    name: str
    sample_rate_hz: int = 48_000
    min_samples: int = 48_000
    # Shorter clips are repeated to it.
    full_sec: float = 10.0

    def embed(self, wave: Float[np.ndarray, "N"]) -> Float[np.ndarray, "T D"]:
        return batched(self._embed_windows, windows(wave, window=10 * self.sample_rate_hz, hop=self.sample_rate_hz))

    def embed_clip(self, wave: Float[np.ndarray, "N"]) -> Float[np.ndarray, "D"]:
        """The unit embedding of a clip: the normalized mean over its windows."""
        return _normalize(_normalize(self.embed(wave)).mean(axis=0))

    def embed_texts(self, texts: Sequence[str]) -> Float[np.ndarray, "n D"]:
        """Unit embeddings of texts."""
        return _normalize(batched(self._embed_texts, list(texts)))

    def _embed_windows(self, waves: Float[np.ndarray, "B n"]) -> Float[np.ndarray, "B D"]:
        inputs = self.features(list(waves), sampling_rate=self.sample_rate_hz, return_tensors="pt")
        with extra("torch", of=_EXTRA).inference_mode():
            return self.model.get_audio_features(**inputs).pooler_output.numpy()

    def _embed_texts(self, texts: list[str]) -> Float[np.ndarray, "B D"]:
        inputs = self.tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
        with extra("torch", of=_EXTRA).inference_mode():
            return self.model.get_text_features(**inputs).pooler_output.numpy()


def load_clap(weights: str | None) -> ClapJudge:
    """CLAP from a folder or a name on the hub; None: that of LAION for music."""
    source = weights or _HUB["clap"]
    model = _pretrained("ClapModel", source)
    features = _pretrained("ClapFeatureExtractor", source)
    return ClapJudge(model, features, _pretrained("AutoTokenizer", source), f"clap@{source}", features.sampling_rate, features.sampling_rate)


def _normalize(x: Float[np.ndarray, "*n D"]) -> Float[np.ndarray, "*n D"]:
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-6)


# ---------------------------------------------------------------------------------------------------------------------- EnCodec, MERT


@dataclasses.dataclass(frozen=True, eq=False)
class EncodecJudge:
    """EnCodec's latents before they are quantized (arXiv 2210.13438), 75 a second: fadtk's "encodec-emb"."""

    model: Any
    name: str
    sample_rate_hz: int
    min_samples: int

    def embed(self, wave: Float[np.ndarray, "N"]) -> Float[np.ndarray, "T D"]:
        torch = extra("torch", of=_EXTRA)
        with torch.inference_mode():
            return self.model.encoder(torch.from_numpy(np.array(wave))[None, None])[0].T.numpy()


def load_encodec(weights: str | None) -> EncodecJudge:
    """EnCodec of one channel, from a folder or a name on the hub; None: that of Meta at 24 kHz."""
    source = weights or _HUB["encodec"]
    model = _pretrained("EncodecModel", source)
    if model.config.audio_channels != 1:
        raise UserError(f"{source}: has {model.config.audio_channels} channels, expected 1: choose the EnCodec at 24 kHz")
    return EncodecJudge(model, f"encodec@{source}", model.config.sampling_rate, model.config.sampling_rate)


@dataclasses.dataclass(frozen=True, eq=False)
class MertJudge:
    """The outputs of a layer of MERT (arXiv 2306.00107), 75 a second, of pieces of 10 s."""

    model: Any
    # 0: the input of the first layer.
    layer: int
    name: str
    sample_rate_hz: int
    min_samples: int

    def embed(self, wave: Float[np.ndarray, "N"]) -> Float[np.ndarray, "T D"]:
        torch = extra("torch", of=_EXTRA)
        rows = []
        for piece in pieces(wave, self.sample_rate_hz):
            piece = (piece - piece.mean()) / np.sqrt(piece.var() + 1e-7)  # As its feature extractor does.
            with torch.inference_mode():
                states = self.model(torch.from_numpy(piece)[None], output_hidden_states=True).hidden_states
            rows.append(states[self.layer][0].numpy())
        return np.concatenate(rows)


def load_mert(weights: str | None, *, layer: int | None = None) -> MertJudge:
    """MERT from a folder or a name on the hub; None: MERT-v1-95M. layer: None: the last one.

    Raises:
        UserError: it reads constant-Q spectra or has other parts that HuBERT lacks, or there is no such layer.
    """
    source = weights or _HUB["mert"]
    config = _pretrained("HubertConfig", source)
    for field, plain in (("feature_extractor_cqt", False), ("deepnorm", False), ("attention_relax", -1)):
        if getattr(config, field, plain) != plain:
            raise UserError(f"{source}: {field}={getattr(config, field)!r}, expected {plain!r}: choose a MERT that is a HuBERT, such as {_HUB['mert']}")
    last = config.num_hidden_layers
    if layer is not None and not 0 <= layer <= last:
        raise UserError(f"mert:{layer}: choose a layer from 0 to {last}")
    rate = getattr(config, "sample_rate", 24_000)
    chosen = last if layer is None else layer
    return MertJudge(_pretrained("HubertModel", source, config=config), chosen, f"mert@{source}:{chosen}", rate, rate)


# ---------------------------------------------------------------------------------------------------------------------- AST, PaSST, VGGish


@dataclasses.dataclass(frozen=True, eq=False)
class AstJudge:
    """AST (arXiv 2104.01778) as a classifier of AudioSet's 527 classes, of windows of 10 s."""

    model: Any
    features: Any
    labels: tuple[str, ...]
    name: str
    sample_rate_hz: int
    min_samples: int

    def logits(self, wave: Float[np.ndarray, "N"]) -> Float[np.ndarray, "T V"]:
        return batched(self._logits, windows(wave, window=10 * self.sample_rate_hz, hop=10 * self.sample_rate_hz))

    def _logits(self, waves: Float[np.ndarray, "B n"]) -> Float[np.ndarray, "B V"]:
        inputs = self.features(list(waves), sampling_rate=self.sample_rate_hz, return_tensors="pt")
        with extra("torch", of=_EXTRA).inference_mode():
            return self.model(**inputs).logits.numpy()


def load_ast(weights: str | None) -> AstJudge:
    """AST from a folder or a name on the hub; None: that of its authors with the best score."""
    source = weights or _HUB["ast"]
    model, features = _pretrained("ASTForAudioClassification", source), _pretrained("ASTFeatureExtractor", source)
    labels = tuple(model.config.id2label[i] for i in range(model.config.num_labels))
    return AstJudge(model, features, labels, f"ast@{source}", features.sampling_rate, features.sampling_rate)


@dataclasses.dataclass(frozen=True, eq=False)
class PasstJudge:
    """PaSST as a classifier of AudioSet's 527 classes, of windows of the length that its weights were trained on."""

    config: passt.PasstConfig
    params: Any
    labels: tuple[str, ...]
    name: str
    sample_rate_hz: int = passt.SAMPLE_RATE_HZ
    min_samples: int = passt.SAMPLE_RATE_HZ

    def logits(self, wave: Float[np.ndarray, "N"]) -> Float[np.ndarray, "T V"]:
        length = self.config.window_samples
        return batched(lambda waves: passt.apply(self.config, self.params, waves), windows(wave, window=length, hop=length), size=1)


def load_passt(weights: str | None) -> PasstJudge:
    """PaSST from a file of its authors, such as passt-s-f128-p16-s10-ap.476-swa.pt, or the same arrays as safetensors."""
    path, config, params = _read("passt", weights, passt.from_torch, passt.variable_shapes, of="PaSST", example="passt-s-f128-p16-s10-ap.476-swa.pt")
    return PasstJudge(config, params, tuple(f"AudioSet {i}" for i in range(config.num_classes)), f"passt@{path.name}")


@dataclasses.dataclass(frozen=True, eq=False)
class VggishJudge:
    """VGGish: an embedding of 128 dimensions for each 0.96 s."""

    config: vggish.VggishConfig
    params: Any
    name: str
    sample_rate_hz: int = vggish.SAMPLE_RATE_HZ
    min_samples: int = vggish.PATCH_SAMPLES

    def embed(self, wave: Float[np.ndarray, "N"]) -> Float[np.ndarray, "T D"]:
        return batched(lambda patches: vggish.apply(self.config, self.params, patches), vggish.patches(wave))


def load_vggish(weights: str | None) -> VggishJudge:
    """VGGish from the state dict of torchvggish: its file .pth, or the same arrays as safetensors."""
    path, config, params = _read("vggish", weights, vggish.from_torch, vggish.variable_shapes, of="torchvggish", example="vggish-10086976.pth")
    return VggishJudge(config, params, f"vggish@{path.name}")


def _read(
    kind: str, weights: str | None, convert: Callable[[dict[str, np.ndarray]], tuple[Any, Any]], shapes: Callable[[Any], Any], *, of: str, example: str
) -> tuple[Path, Any, Any]:
    """Returns (the file, config, parameters) of a model that runs in JAX, from a state dict in a file of PyTorch or safetensors.

    Raises:
        UserError: there is no file, or it is another model's.
    """
    if weights is None:
        raise UserError(f"{kind}: name its weights with --weights, such as {example} of {of}, or the same arrays as safetensors")
    path = Path(weights)
    try:
        config, params = convert(_read_state(path))
    except OSError as error:
        raise unreadable(path, error) from error
    except (KeyError, ValueError, IndexError) as error:
        raise UserError(f"{path}: not the weights of {of} ({error} is missing or of another shape); choose a file such as {example}") from error
    bundle.check_shapes(params, shapes(config), where=weights)
    return path, config, params


def _read_state(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a file of PyTorch, without unpickling code, or of a safetensors file."""
    if path.suffix == ".safetensors":
        return bundle.read_arrays(path)[0]
    torch = extra("torch", of=_EXTRA)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        return {name: value.numpy() for name, value in state.items()}
    except (RuntimeError, AttributeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise UserError(f"{path}: not a file of PyTorch's weights; copy or download it again") from error
