"""The bundle of a finished training, and its model card."""

from __future__ import annotations

import dataclasses
import math
import platform
from typing import Any

import jax
import safetensors

import musiclm_jax
from musiclm_jax import bundle
from musiclm_jax.configs import RERANKERS
from musiclm_jax.errors import UserError
from musiclm_jax.files import fingerprint, is_bucket, local_copy, read_json
from musiclm_jax.musiclm import MusicLM
from musiclm_jax.parts.mulan import QUANTIZER, vocabulary
from musiclm_jax.parts.part import PREPARE, WEIGHTS, FitConfig, Part, Run, Step, Work
from musiclm_jax.parts.trained import TrainedPart
from musiclm_jax.parts.w2v_bert import KMEANS
from musiclm_jax.records import to_dict


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
        names = {part.name for part in fit.parts}
        models = (*fit.model.models, *(name for name in RERANKERS if name in names))
        outputs = ("bundle/config.json", "bundle/README.md", *(f"bundle/{name}.safetensors" for name in models))
        settings = {"model": to_dict(fit.model), "dtype": self.dtype}
        return (Step(self.name, "writing the bundle", self._export, outputs, settings, needs=(PREPARE, KMEANS, QUANTIZER, *models)),)

    def _export(self, run: Run, work: Work) -> dict[str, Any]:
        # Models whose weights come from several steps.
        made_by = {"w2v_bert": ("w2v_bert", KMEANS), "mulan": ("mulan", QUANTIZER)}
        names = [name for name in (*run.config.model.models, *RERANKERS) if name in run.config.steps]
        variables = {name: {key: value for step in made_by.get(name, (name,)) for key, value in run.weights(step).items()} for name in names}
        musiclm = MusicLM(run.config.model, variables, vocabulary(run))
        musiclm.save_pretrained(work.folder / "bundle", dtype=self.dtype, card=model_card(run))
        return {"bytes": sum(fingerprint(path)[0] for path in (work.folder / "bundle").iterdir())}


def model_card(run: Run) -> str:
    """README.md of the bundle: its data, its training, and the metrics of each part.

    It contains no times, so that the same training gives the same bytes; `done.json` of each step has them.
    """
    steps = [step for step in run.config.steps_to("export")[:-1]]
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
    return "\n".join([*lines, ""])


def _num_params(run: Run, step: str) -> int:
    """The number of parameters of a step, from the header of its file."""
    with safetensors.safe_open(local_copy(run.folder(step) / WEIGHTS), framework="numpy") as file:
        return sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
