"""The bundle of a finished training, and its model card."""

from __future__ import annotations

import dataclasses
import math
import platform
from typing import Any

import jax
import safetensors

import musiclm_jax
from musiclm_jax import bundle, pretrained
from musiclm_jax.configs import RERANKERS, TOKENIZER_MODELS
from musiclm_jax.corpus.clip import NOTICE
from musiclm_jax.errors import UserError
from musiclm_jax.files import fingerprint, is_bucket, is_file, local_copy, read_json
from musiclm_jax.models.text import TextTokenizer
from musiclm_jax.parts.mulan import QUANTIZER, vocabulary
from musiclm_jax.parts.part import PREPARE, WEIGHTS, FitConfig, Part, Run, Step, Work
from musiclm_jax.parts.trained import TrainedPart
from musiclm_jax.parts.w2v_bert import KMEANS
from musiclm_jax.training import hosts

# A step that `musiclm train` runs: a bundle without stages, for `musiclm tokenize`.
TOKENIZERS = "tokenizers"


@dataclasses.dataclass(frozen=True)
class ExportPart(Part):
    """Writes the bundle from the trained models, with the rerankers if they are among the parts."""

    # Dtype of the weights in the bundle: "float32" or "float16".
    dtype: str = "float32"

    def __post_init__(self):
        if self.dtype not in ("float32", "float16"):
            raise UserError(f"dtype={self.dtype!r} of the bundle: choose 'float32' or 'float16'")

    @property
    def name(self) -> str:
        return "export"

    def steps(self, fit: FitConfig) -> tuple[Step, ...]:
        there = {part.name for part in fit.parts} | fit.given.keys()
        rerankers = tuple(name for name in RERANKERS if name in there)
        steps = (self._step(fit, self.name, "writing the bundle", (*fit.model.models, *rerankers)),)
        return steps if fit.given else (*steps, self._step(fit, TOKENIZERS, "writing the tokenizers", TOKENIZER_MODELS))

    def _step(self, fit: FitConfig, name: str, title: str, models: tuple[str, ...]) -> Step:
        outputs = ("bundle/config.json", "bundle/README.md", *(f"bundle/{model}.safetensors" for model in models))
        needs = tuple(each for model in models if model not in fit.given for each in _steps_of(model))
        write = lambda run, work: hosts.first(lambda: self._write(run, work, name, models))  # noqa: E731
        return Step(name, title, write, outputs, {"model": fit.model.to_dict(), "dtype": self.dtype}, needs=(PREPARE, *needs))

    def _write(self, run: Run, work: Work, step: str, models: tuple[str, ...]) -> dict[str, Any]:
        made_by = {model: (model,) if model in run.config.given else _steps_of(model) for model in models}
        variables = {model: {key: value for each in steps for key, value in run.saved(each).items()} for model, steps in made_by.items()}
        bundle.save(
            work.folder / "bundle",
            config=run.config.model.to_dict(),
            models=variables,
            metadata={"mulan": {pretrained.VOCABULARY: _vocabulary(run).to_json()}},
            card=model_card(run, step),
            dtype=self.dtype,
        )
        return {"bytes": sum(fingerprint(path)[0] for path in (work.folder / "bundle").iterdir())}


def _steps_of(model: str) -> tuple[str, ...]:
    """The steps that train a model."""
    return {"w2v_bert": ("w2v_bert", KMEANS), "mulan": ("mulan", QUANTIZER)}.get(model, (model,))


def _vocabulary(run: Run) -> TextTokenizer:
    return vocabulary(run) if run.tokens is None else pretrained.load_vocabulary(pretrained.open_pretrained(run.tokens.tokenizers))


def model_card(run: Run, step: str) -> str:
    """README.md of the bundle: its data, its training, and the metrics of each part.

    It contains the NOTICE of the folder of clips, if there is one, and no times, so that the same training gives the same bytes; `done.json` of each step has
    the times.
    """
    steps = run.config.steps_to(step)[:-1]
    results = {step.name: read_json(run.folder(step.name) / "done.json")["results"] for step in steps}
    data = results[PREPARE]
    data_name = (run.data if is_bucket(run.data) else run.data.resolve()).name
    device = jax.devices()[0]
    lines = [
        *bundle.CARD_HEAD,
        "```python",
        "from musiclm_jax import MusicLM",
        'music = MusicLM.from_pretrained("this folder").generate(["a calm piano melody"], seconds=10, seed=0)',
        "```",
        "",
        f"Trained with musiclm_jax {musiclm_jax.__version__} (jax {jax.__version__}) on {len(jax.devices())} x {device.device_kind or device.platform}, "
        f"{platform.system()} {platform.machine()}.",
        f"Data: {data['clips']} clips, {data['hours']:g} hours, {data['captioned']} of them with captions, {data['held_out']} of them held out; "
        f"{data['skipped']} could not be used.",
        f"Licence, uses and limits of the model follow those of its data, the folder `{data_name}`.",
        "",
        "| part | parameters | steps |",
        "|---|---|---|",
    ]
    for part in run.config.parts:
        if isinstance(part, TrainedPart) and part.name in results:
            lines.append(f"| {part.name} | {_num_params(run, part.name) / 1e6:.3g}M | {part.task(run.config).num_steps} |")
    lines += ["", "## Quality", "", "Last values; `eval_` is on clips held out from training. `loss` of a stage is in nats per token."]
    lines += ["", "| step | metric | value |", "|---|---|---|"]
    for step in steps:
        for metric, value in results[step.name].items():
            if step.num_steps is None or metric.startswith("eval_"):
                lines.append(f"| {step.name} | {metric} | {value:.4g} |")
    if not is_bucket(run.data) and is_file(notice := run.data / NOTICE):
        lines += ["", "## Notices of the data", "", "```text", notice.read_text(encoding="utf-8").strip(), "```"]
    return "\n".join([*lines, ""])


def _num_params(run: Run, step: str) -> int:
    """The number of parameters of a step, from the header of its file."""
    with safetensors.safe_open(local_copy(run.folder(step) / WEIGHTS), framework="numpy") as file:
        return sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
