"""Cost of a traced program, counted from its jaxpr: floating-point operations and activation memory. Nothing is allocated or compiled.

MFU, model FLOPs utilization, is the FLOPs of a training step over what all devices could do in its time (PaLM, arXiv 2204.02311, appendix B): matrix
products forward and backward, the whole square of attention, and nothing that `remat` recomputes.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from typing import Any

import jax
from jax.extend.core import Jaxpr, Var, jaxprs_in_params

# Operations whose results XLA does not materialize: it reads the operand in the new shape.
_VIEWS = ("broadcast_in_dim", "reshape", "squeeze")

# FLOP/s of dense bfloat16 products with float32 sums, from the vendors' data sheets, by a part of `device_kind`. The first that fits is taken.
PEAK_FLOPS = {
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "H200": 989e12,
    "A100": 312e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,  # v5p.
    "TPU v6 lite": 918e12,
}


def peak_flops(device_kind: str) -> float | None:
    """FLOP/s of a device, whatever the dtype of the training. None: unknown, as for CPUs."""
    return next((peak for name, peak in PEAK_FLOPS.items() if name in device_kind), None)


def ideal_step_sec(task: Any, state: Any, batch: Any) -> float | None:
    """Seconds of a training step of a `Task` if all devices worked at their peak; divided by the seconds that it takes, the MFU. None: the peak is unknown.

    state, batch: arrays or their shapes.
    """
    peak = peak_flops(jax.devices()[0].device_kind)
    return None if peak is None else step_flops(task, state, batch) / (peak * jax.device_count())


def step_flops(task: Any, state: Any, batch: Any) -> int:
    """`count_flops` of a training step without rematerialization, which repeats products, and fused kernels, which hide them."""
    key = jax.eval_shape(lambda: jax.random.key(0))
    return count_flops(jax.make_jaxpr(_plain(task).train_step)(*jax.eval_shape(lambda *args: args, state, batch), key).jaxpr)


def _plain(config: Any) -> Any:
    """A task whose models recompute nothing, use no fused kernel and take a batch as a whole."""
    if not dataclasses.is_dataclass(config):
        return config
    plain = {"remat": "none", "attention_kernel": "xla", "accumulate": 1}
    names = [field.name for field in dataclasses.fields(config) if field.init]
    return dataclasses.replace(config, **{name: plain.get(name, _plain(getattr(config, name))) for name in names})


def count_flops(jaxpr: Jaxpr) -> int:
    """Counts the floating-point operations of a program's matrix products and convolutions, two per multiplication.

    For a training step that is the forward pass, the backward pass and what `remat` recomputes: about 6 x parameters x tokens for a Transformer, plus
    its attention. The body of a scan is counted once per iteration (XLA's own `cost_analysis` counts it once in all, so a stack of 24 layers as one).
    Of a conditional, the branch for True is counted; ours take it in all but the first steps of a run. All other operations, such as norms, softmax, FFTs
    and the optimizer, are a few percent and not counted. XLA may execute fewer operations, since it shares equal products.
    """
    total = 0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            total += 2 * eqn.outvars[0].aval.size * math.prod(eqn.invars[0].aval.shape[axis] for axis in contracted)
        elif eqn.primitive.name == "conv_general_dilated":
            kernel, out_features = eqn.invars[1].aval, eqn.params["dimension_numbers"].rhs_spec[0]
            # The gradient of a strided convolution has a dilated input: the inserted zeros are not counted.
            per_output = kernel.size // kernel.shape[out_features] / math.prod(eqn.params["lhs_dilation"])
            total += round(2 * eqn.outvars[0].aval.size * per_output)
        else:
            inner = [count_flops(each) for each in jaxprs_in_params(eqn.params)]
            total += inner[-1] if eqn.primitive.name == "cond" else eqn.params.get("length", 1) * sum(inner)
    return total


def count_activations(jaxpr: Jaxpr, larger: Jaxpr) -> int:
    """Estimates the peak memory of a program's activations, in bytes.

    A value is an activation if it is larger in `larger`, the same program traced with a larger batch; this excludes gradients and the optimizer.
    An activation is live from the operation that produces it to the last one that reads it, in program order. Arguments and views are not counted. The
    peak includes what the backward pass keeps of the forward pass, over all steps of a scan, and what `remat` recomputes, one layer at a time. XLA needs
    less memory where it fuses operations, and more for copies and workspaces: at the size "test" the estimate is 0.6 (codec) to 1.9 times (stages) what
    XLA plans on CPU.
    """
    viewed: dict[Var, Var] = {}
    size: dict[Var, int] = {}
    last_use: dict[Var, int] = {}
    for index, (eqn, twin) in enumerate(zip(jaxpr.eqns, larger.eqns, strict=True)):
        read = [viewed.get(each, each) for each in eqn.invars if isinstance(each, Var)]
        last_use |= dict.fromkeys(read, index)
        if eqn.primitive.name in _VIEWS:
            viewed |= {out: each for out, each in zip(eqn.outvars, read, strict=False)}  # A constant operand is not in `read`.
        else:
            pairs = zip(eqn.outvars, twin.outvars, strict=True)
            size |= {out: out.aval.size * out.aval.dtype.itemsize for out, grown in pairs if grown.aval.size > out.aval.size}
    last_use |= {viewed.get(each, each): len(jaxpr.eqns) for each in jaxpr.outvars if isinstance(each, Var)}
    freed: Counter[int] = Counter()
    for each, index in last_use.items():
        freed[index] += size.get(each, 0)
    live = peak = 0
    for index, (eqn, twin) in enumerate(zip(jaxpr.eqns, larger.eqns, strict=True)):
        made = sum(size.get(out, 0) for out in eqn.outvars if out in last_use)
        bodies = zip(jaxprs_in_params(eqn.params), jaxprs_in_params(twin.params), strict=True)
        inside = max((count_activations(*pair) for pair in bodies), default=0)
        # A scan allocates its stacked results at its start; the results of a call or a branch are values of its body.
        peak = max(peak, live + (made + inside if eqn.primitive.name == "scan" else max(made, inside)))
        live += made - freed[index]
    return peak
