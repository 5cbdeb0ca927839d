"""What a traced program costs, counted from its jaxpr: arithmetic and activations. Nothing is allocated and nothing compiled."""

from __future__ import annotations

import math
from collections import Counter

from jax.extend.core import Jaxpr, Var, jaxprs_in_params

# What XLA does not write out: it reads the operand in the shape that is asked for.
_VIEWS = ("broadcast_in_dim", "reshape", "squeeze")


def count_flops(jaxpr: Jaxpr) -> int:
    """Floating-point operations of a traced program's matrix products and convolutions, two per multiplication.

    Of a training step that is forward, backward and what `remat` computes again; about 6 x parameters x tokens for a Transformer, and its
    attention on top. The body of a scan counts as often as it runs (XLA's own `cost_analysis` counts it once: a stage of 24 layers as if it
    had one). Of a conditional the branch counts that is taken where its predicate holds, as ours do in all but a run's first steps. All else,
    such as norms, softmax, FFTs and the optimizer, is a few percent and left out, and so is what XLA saves by sharing equal products.
    """
    total = 0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            total += 2 * eqn.outvars[0].aval.size * math.prod(eqn.invars[0].aval.shape[axis] for axis in contracted)
        elif eqn.primitive.name == "conv_general_dilated":
            kernel, out_features = eqn.invars[1].aval, eqn.params["dimension_numbers"].rhs_spec[0]
            # A dilated input, as the gradient of a strided convolution has, is mostly zeros, which cost nothing.
            per_output = kernel.size // kernel.shape[out_features] / math.prod(eqn.params["lhs_dilation"])
            total += round(2 * eqn.outvars[0].aval.size * per_output)
        else:
            inner = [count_flops(each) for each in jaxprs_in_params(eqn.params)]
            total += inner[-1] if eqn.primitive.name == "cond" else eqn.params.get("length", 1) * sum(inner)
    return total


def count_activations(jaxpr: Jaxpr, larger: Jaxpr) -> int:
    """Bytes of a traced program's activations, where they are most: its values that are larger in `larger`, the same program of a larger batch.

    That tells them from gradients and from what an optimizer computes. A value is held from the operation that makes it to the last one that
    reads it, in the order in which the program is written; arguments are not counted, nor are views. What the backward pass keeps of the forward
    pass is part of it, over all steps of a scan, and so is what `remat` computes again, one layer at a time. XLA fuses operations and so holds
    less; it copies and keeps workspaces, and so holds more. At the size "test" this is 0.6 (codec) to 1.9 times (stages) what its CPU compiler plans.
    """
    viewed: dict[Var, Var] = {}
    size: dict[Var, int] = {}
    last_use: dict[Var, int] = {}
    for index, (eqn, twin) in enumerate(zip(jaxpr.eqns, larger.eqns, strict=True)):
        read = [viewed.get(each, each) for each in eqn.invars if isinstance(each, Var)]
        last_use |= dict.fromkeys(read, index)
        if eqn.primitive.name in _VIEWS:
            viewed |= {out: each for out, each in zip(eqn.outvars, read, strict=False)}  # Of a constant: nothing.
        else:
            pairs = zip(eqn.outvars, twin.outvars, strict=True)
            size |= {out: out.aval.size * out.aval.dtype.itemsize for out, grown in pairs if grown.aval.size > out.aval.size}
    last_use |= {viewed.get(each, each): len(jaxpr.eqns) for each in jaxpr.outvars if isinstance(each, Var)}
    freed: Counter[int] = Counter()
    for each, index in last_use.items():
        freed[index] += size.get(each, 0)
    held = most = 0
    for index, (eqn, twin) in enumerate(zip(jaxpr.eqns, larger.eqns, strict=True)):
        made = sum(size.get(out, 0) for out in eqn.outvars if out in last_use)
        bodies = zip(jaxprs_in_params(eqn.params), jaxprs_in_params(twin.params), strict=True)
        inside = max((count_activations(*pair) for pair in bodies), default=0)
        # The stacks of a scan's results are there from its start; the body of a call, or of a branch, makes the results themselves.
        most = max(most, held + (made + inside if eqn.primitive.name == "scan" else max(made, inside)))
        held += made - freed[index]
    return most
