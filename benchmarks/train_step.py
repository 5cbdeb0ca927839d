"""How fast is a training step? `python benchmarks/train_step.py [PART[:BATCH]]... [--set FIELD=VALUE]... [--torch]`, at the size `base`.

Each PART (codec, w2v_bert, mulan, semantic, coarse, fine, melody, ...) is trained on random batches by its recipe, not split into micro-batches. Times are
wall-clock seconds of a step, the median of STEPS that follow each other, each waited for; compilation is not part of them. `musiclm_jax/training/cost.py` says
what MFU counts.

--torch: beside the same model in PyTorch (torch.compile, scaled_dot_product_attention with T5's bias as its mask, bfloat16 autocast, fused AdamW).
"""

import argparse
import dataclasses
import json
import statistics
import time
from collections.abc import Callable

import jax
import numpy as np

from musiclm_jax.cli.gin_config import load_config
from musiclm_jax.models.stage import StageConfig
from musiclm_jax.tokens import StageLayout
from musiclm_jax.training import sharding
from musiclm_jax.training.cost import peak_flops, step_flops

STEPS = 10


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("parts", nargs="*", default=["semantic:16", "coarse:8", "fine:8"])
    parser.add_argument("--set", dest="fields", action="append", default=[], help="FIELD=VALUE of the model's config, as Python writes it")
    parser.add_argument("--torch", action="store_true")
    args = parser.parse_args()
    fields = {name: eval(value) for name, value in (each.split("=", 1) for each in args.fields)}  # noqa: S307
    device = jax.devices()[0].device_kind
    peak = peak_flops(device)
    for each in args.parts:
        name, _, batch = each.partition(":")
        row = {"part": name, "batch": int(batch or 8), "device": device} | fields
        try:
            row |= (measure_torch if args.torch else measure)(name, int(batch or 8), fields, peak)
        except Exception as error:  # Such as out of memory: the next one may fit.
            row["error"] = str(error).splitlines()[0][:300]
        print(json.dumps(row), flush=True)


def measure(name: str, batch_size: int, fields: dict, peak: float | None) -> dict:
    config, part, task = part_task(name, batch_size, fields)
    shapes, key = part.batch_shapes(config), jax.random.key(0)
    batch = sharding.put_batch(random_batch(shapes), sharding.make_mesh())
    state = jax.jit(lambda key: sharding.unbox(task.init_state(key)))(key)
    flops = step_flops(task, state, shapes)
    began = time.perf_counter()
    step = jax.jit(task.train_step, donate_argnums=0).lower(state, batch, key).compile()
    compiled = time.perf_counter() - began
    temporary = step.memory_analysis().temp_size_in_bytes
    losses = []

    def run() -> None:
        nonlocal state
        state, metrics = step(state, batch, key)
        losses.append(float(metrics["loss"]))

    seconds = clock(run)
    found = {"compile_sec": compiled, "step_sec": seconds, "audio_sec_per_sec": batch_size * part.example_sec(config) / seconds}
    if counts := part.tokens_per_example(config):
        predicted, tokens = (batch_size * count for count in counts)
        found |= {"tokens_per_sec": tokens / seconds, "predicted_per_sec": predicted / seconds}
    found |= {"tflops_per_sec": flops / seconds / 1e12, "temporary_gib": temporary / 2**30, "losses": [losses[0], losses[-1]]}
    return found | ({} if peak is None else {"mfu": flops / seconds / peak})


def part_task(name: str, batch_size: int, fields: dict):
    """(config, part, task) of a part at the size `base`, with some fields of its model changed."""
    config = load_config("base")
    part = config.part(name)
    part = dataclasses.replace(part, batch_size=batch_size, recipe=dataclasses.replace(part.recipe, accumulate=1))
    task = part.task(config)
    return config, part, dataclasses.replace(task, model=dataclasses.replace(task.model, **fields))


def random_batch(shapes: dict) -> dict[str, np.ndarray]:
    """Noise, codes and whole masks: no step takes another time for its data."""
    rng = np.random.default_rng(0)
    make = {"f": lambda shape: 0.1 * rng.normal(size=shape), "i": lambda shape: rng.integers(0, 1000, shape), "b": np.ones}
    return {name: make[shape.dtype.kind](shape.shape).astype(shape.dtype) for name, shape in shapes.items()}


def clock(run: Callable[[], None]) -> float:
    for _ in range(3):
        run()
    times = []
    for _ in range(STEPS):
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


# ---------------------------------------------------------------------------------------------------------------------- The same in PyTorch


def measure_torch(name: str, batch_size: int, fields: dict, peak: float | None) -> dict:
    import torch

    config, part, task = part_task(name, batch_size, fields)
    length = task.layout.num_tokens(part.example_sec(config)) - 1
    model = torch_stage(task.model, task.layout).cuda()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    compiled = torch.compile(model)
    ids = torch.randint(0, task.layout.vocab_size, (batch_size, length), device="cuda")
    predicted = part.tokens_per_example(config)[0]
    codes = torch.randint(0, task.layout.target.codes, (batch_size, predicted), device="cuda")

    def run() -> None:
        with torch.autocast("cuda", dtype=torch.bfloat16):
            loss = compiled(ids, codes)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()

    began = time.perf_counter()
    run()
    return {"torch_compile_sec": time.perf_counter() - began, "torch_step_sec": clock(run), "torch_gib": torch.cuda.max_memory_allocated() / 2**30}


def torch_stage(config: StageConfig, layout: StageLayout):
    import torch
    from torch import nn
    from torch.nn import functional as F

    from musiclm_jax.nn.relative import relative_buckets

    dim, heads, width = config.dim, config.num_heads, config.head_dim
    attention_dropout = config.weights_dropout

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.norms = nn.ModuleList(nn.RMSNorm(dim) for _ in range(2))
            self.qkv, self.out = nn.Linear(dim, 3 * heads * width, bias=False), nn.Linear(heads * width, dim, bias=False)
            self.widen, self.narrow = nn.Linear(dim, 2 * config.mlp_dim, bias=False), nn.Linear(config.mlp_dim, dim, bias=False)

        def forward(self, x, bias):
            batch, length, _ = x.shape
            q, k, v = self.qkv(self.norms[0](x)).view(batch, length, 3, heads, width).permute(2, 0, 3, 1, 4)
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=attention_dropout, scale=1.0)
            x = x + dropout(self.out(y.transpose(1, 2).reshape(batch, length, -1)))
            gate, up = self.widen(self.norms[1](x)).chunk(2, dim=-1)
            return x + dropout(self.narrow(dropout(F.gelu(gate, approximate="tanh") * up)))

    def dropout(x):  # One draw for all positions of a sequence, as ours.
        return x * F.dropout(torch.ones_like(x[:, :1]), config.dropout)

    class StageModel(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(layout.vocab_size + 1, dim)
            self.bias = nn.Embedding(config.num_buckets, heads)
            self.blocks, self.norm = nn.ModuleList(Block() for _ in range(config.num_layers)), nn.RMSNorm(dim)
            self.head = nn.Parameter(torch.randn(layout.vocab_size, dim) * dim**-0.5)

        def forward(self, ids, codes):
            length, (levels, size) = ids.shape[1], (layout.target.levels, layout.target.codes)
            bias = self.bias(buckets(length)).permute(2, 0, 1)[None]
            bias = bias.masked_fill(torch.ones(length, length, dtype=torch.bool, device=ids.device).triu(1), float("-inf")).to(torch.bfloat16)
            x = dropout(self.embed(ids))
            for block in self.blocks:
                x = block(x, bias)
            hidden = self.norm(x)[:, -codes.shape[1] :].float().view(ids.shape[0], -1, levels, dim)
            with torch.autocast("cuda", enabled=False):
                logits = torch.einsum("btqd,qcd->btqc", hidden, self.head[layout.target_offset :].view(levels, size, dim))
            return F.cross_entropy(logits.flatten(0, 2), codes.flatten()) + 1e-4 * logits.logsumexp(-1).square().mean()

    table = {}

    def buckets(length):
        if length not in table:
            distance = np.minimum(np.arange(length)[None] - np.arange(length)[:, None], 0)
            found = relative_buckets(distance, num_buckets=config.num_buckets, max_distance=config.max_distance, bidirectional=False)
            table[length] = torch.tensor(found, dtype=torch.long, device="cuda")
        return table[length]

    torch.set_float32_matmul_precision("high")
    return StageModel()


if __name__ == "__main__":
    main()
