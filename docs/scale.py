"""Writes docs/scale.md: `python docs/scale.py [--price CHIP=DOLLARS]... [--utilization PART=SHARE]...`.

What the recipes of the size `base` take on four chips, and how they scale to 512 of them: arithmetic on dry runs and data sheets, no measurement. The
formulas stand on the page. A test compares a row of the page with its dry run, so run this after a model, a recipe or the dry run has changed.
"""

import argparse
import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp

from musiclm_jax.cli.gin_config import load_config
from musiclm_jax.models import codec, mulan, w2v_bert
from musiclm_jax.parts.dry_run import dry_run
from musiclm_jax.training.cost import count_flops

OUT = Path(__file__).with_suffix(".md")
PARTS = ("codec", "w2v_bert", "mulan", "reranker", "semantic_reranker", "semantic", "coarse", "fine", "melody")
SCALED = ("semantic", "coarse", "fine", "w2v_bert", "mulan")
SIZES = (8, 16, 32, 64, 128, 256, 512)
# Of `musiclm tokenize`: a record, what the tokenizers hear for it, the hours of the table, and the share of a chip's peak that is assumed.
RECORD_SEC, HEARD_SEC, HOURS, TOKENIZING = 30.0, 40.0, 100_000, 0.1
# Semantic tokens, acoustic tokens and embeddings, of two bytes each.
RECORD_BYTES = 2 * (750 + 1500 * 12 + 21 * 128)
# Of a chip's memory, what a step may take; the rest is for gathered weights, workspaces and fragments.
USABLE = 0.9
# Of a chip's peak, what a step reaches: the least that stages did on an H100, and what the other parts did on an H200 in float32 (docs/speed.md). The melody
# embedder was not measured.
UTILIZATION = {"codec": 0.009, "w2v_bert": 0.1, "mulan": 0.1, "reranker": 0.1, "semantic_reranker": 0.1, "melody": 0.1}
UTILIZATION |= {"semantic": 0.28, "coarse": 0.28, "fine": 0.28}


@dataclasses.dataclass(frozen=True)
class Chip:
    """A chip, as its vendor's data sheet has it. Bandwidths are bytes per second that a chip sends in one direction, half of the vendors' figures."""

    name: str
    memory: float
    peak: float  # FLOP/s of dense bfloat16.
    link: float  # To chips of the same domain: a slice, or the 8 GPUs of a machine.
    domain: int
    network: float  # To other domains.
    price: float  # Dollars per hour.

    def has_room(self, size: float) -> bool:
        return size <= USABLE * self.memory


CHIPS = (
    Chip("v5e", 16e9, 197e12, 200e9, 256, 3.1e9, price=1.2),
    Chip("v5p", 95e9, 459e12, 600e9, 8960, 6.2e9, price=4.2),
    Chip("v6e", 32e9, 918e12, 400e9, 256, 6.2e9, price=2.7),
    Chip("H100", 80e9, 989e12, 450e9, 8, 50e9, price=11.0),
)


@dataclasses.dataclass(frozen=True)
class Load:
    """A training step of a part at the size `base`, all devices together."""

    name: str
    steps: int
    batch: int
    micro_batches: int
    # What the batch counts in, "tokens" or "s of audio", and how many.
    unit: str
    amount: float
    flops: float
    parameters: int
    # Bytes of parameters, optimizer, statistics and gradients, and of the activations of a micro-batch.
    state: int
    activations: int
    utilization: float
    # Layers and width of a Transformer that can be split by `tensor`. 0: not a stage.
    layers: int = 0
    width: int = 0

    def memory(self, chips: int, micro_batches: int | None = None) -> float:
        """Bytes per chip, all split by `fsdp`. micro_batches: None for the recipe's."""
        return (self.state + self.activations * self.micro_batches / (micro_batches or self.micro_batches)) / chips

    def at_least(self, chip: Chip) -> int | None:
        """The smallest power of two of chips whose memory suffices and over which the micro-batches split. None: there is none."""
        counts = (2**i for i in range(13))
        return next((n for n in counts if chip.has_room(self.memory(n)) and self.batch % (n * self.micro_batches) == 0), None)

    def seconds(self, chip: Chip, chips: int) -> float:
        return self.flops / (chips * chip.peak * self.utilization)

    def chip_hours(self, chip: Chip) -> float:
        return self.steps * self.seconds(chip, 1) / 3600


def measure(name: str) -> Load:
    config = load_config("base", bindings=["MeshConfig.data=1"])
    part, run = config.part(name), dry_run(name, config)
    model, activations = part.task(config).model, run.bytes_per_device["activations"]
    unit, amount = ("tokens", run.tokens[1]) if run.tokens else ("s of audio", run.seconds)
    layers, width = (model.num_layers, model.dim) if run.tokens else (0, 0)
    state = sum(run.bytes_per_device.values()) - activations
    micro_batches, steps = part.recipe.accumulate, part.recipe.num_steps
    return Load(name, steps, run.batch_size, micro_batches, unit, amount, run.flops, run.trained, state, activations, UTILIZATION[name], layers, width)


def measure_tokenizing() -> dict[str, float]:
    """FLOPs of the frozen models for a record of `musiclm tokenize`: 30 s, with 5 s of context on each side, and MuLan's windows each second."""
    config = load_config("base").model
    wave = lambda seconds: jax.ShapeDtypeStruct((1, round(seconds * config.audio.sample_rate_hz)), jnp.float32)  # noqa: E731
    count = lambda fn, *shapes: count_flops(jax.make_jaxpr(fn)(*shapes).jaxpr)  # noqa: E731
    windows = mulan.num_windows(config.mulan, round(RECORD_SEC * config.audio.sample_rate_hz))
    return {
        "codec": count(lambda variables, wave: codec.encode(config.codec, variables, wave), config.variable_shapes("codec"), wave(HEARD_SEC)),
        "w2v_bert": count(lambda variables, wave: w2v_bert.semantic_ids(config.w2v_bert, variables, wave), config.variable_shapes("w2v_bert"), wave(HEARD_SEC)),
        "mulan": windows
        * count(lambda params, wave: mulan.embed_audio(config.mulan, params, wave), config.variable_shapes("mulan")["params"], wave(config.mulan.window_sec)),
    }


# ---------------------------------------------------------------------------------------------------------------------- Traffic


@dataclasses.dataclass(frozen=True)
class Plan:
    """How a step is split over chips: `slices` domains by `data`, the rest by `fsdp`, and by `tensor` what is more than the batch has examples."""

    fsdp: int
    slices: int
    tensor: int
    micro_batches: int


def plan(load: Load, chip: Chip, chips: int) -> Plan | None:
    """The plan over `chips`. None: they are more than the examples, and the part cannot be split by `tensor`."""
    tensor = max(1, chips // load.batch)
    if tensor > 1 and not load.layers:
        return None
    each = load.batch // (chips // tensor)
    micro_batches = max(count for count in range(1, load.micro_batches + 1) if each % count == 0)
    slices = max(1, chips // chip.domain)
    return Plan(chips // slices // tensor, slices, tensor, micro_batches)


def traffic(load: Load, how: Plan) -> tuple[float, float]:
    """Bytes that a chip sends in a step, (within its domain, to other domains), by rings.

    A ring over n chips sends (n - 1) / n of an array for an all-gather or a reduce-scatter of it, and twice that for an all-reduce.
    """
    ring = lambda n: (n - 1) / n  # noqa: E731
    weights = load.parameters / how.tensor
    # In each micro-batch: bfloat16 weights gathered forward and backward, float32 gradients scattered.
    fsdp = how.micro_batches * ring(how.fsdp) * weights * (2 + 2 + 4)
    # Two products per layer whose sums are reduced, forward, recomputed and backward: hidden states in bfloat16.
    tokens = load.amount / (how.fsdp * how.slices)
    tensor = load.layers * 2 * 3 * 2 * ring(how.tensor) * tokens * load.width * 2
    # Each chip reduces its own share of the gradients with those of the other domains.
    between = how.micro_batches * 2 * ring(how.slices) * weights / how.fsdp * 4
    return fsdp + tensor, between


def efficiency(load: Load, chip: Chip, chips: int) -> tuple[float, float] | None:
    """The share of the time that is computation, (if communication waits for it, if it is hidden behind it). None: no plan, or too little memory."""
    how = plan(load, chip, chips)
    if how is None or not chip.has_room(load.memory(chips, how.micro_batches)):
        return None
    inside, between = traffic(load, how)
    computing, moving = load.seconds(chip, chips), inside / chip.link + between / chip.network
    return computing / (computing + moving), computing / max(computing, moving)


# ---------------------------------------------------------------------------------------------------------------------- The page

INTRODUCTION = """\
# What the paper's sizes take, on paper

`python docs/scale.py` writes this page. **It is arithmetic, not a measurement**: nobody has trained these sizes with this code, and no TPU has run it.

- Memory and FLOPs are those of `musiclm train PART --size base --dry_run`. What is recomputed, and what MuLan embeds twice, is counted as work. The estimate
  of activations is 0.6 (codec) to 1.9 times (stages) of what XLA plans on CPU at the size `test`: the codec may need twice the chips. On an
  H100, with cuDNN's attention, XLA planned 0.7 (coarse, fine) to 0.9 times (semantic) the estimate.
- `--size base` computes in bfloat16, recomputes (`remat`), and splits batches into micro-batches (`accumulate`) so that 8 chips of 16 GB suffice, except
  for w2v-BERT: its quantizer standardizes over the batch, so that its batch is not split. More micro-batches need fewer chips, fewer are faster.
- Chips at least: the smallest power of two n with (state + activations) / n at most {usable:.0%} of a chip's memory, by `MeshConfig.fsdp=n`, over which each
  micro-batch splits evenly. State is parameters, optimizer, statistics and gradients.
- Seconds per step = FLOPs / (n x peak x utilization). Hours = steps x seconds / 3600; dollars = hours x n x price. Communication is not in them, the last
  section has it; neither are input, evaluation and checkpoints.
- Utilization is the share of the peak that the counted FLOPs reach, in the first table. It is the least that stages had on one H100 in bfloat16 (28 to 33 %,
  recomputation left out of the count, cuDNN's attention), and what the codec, w2v-BERT and MuLan had on one H200 **in float32**
  ([speed.md](speed.md#a-training-step-on-one-h100-and-one-h200)); in bfloat16, as here, these should be faster. The melody embedder is taken to be like MuLan.
  That TPUs reach as much is **assumed**. Give yours: `python docs/scale.py --utilization codec=0.1`.
- Prices per chip and hour: {prices}. **They are inputs.** Those of TPUs are list prices without a date, whose source is in
  [tpu.md](tpu.md#what-it-costs); that of the H100 is assumed. Give yours: `python docs/scale.py --price v5e=0.6`.
- Peaks, memory and links are the vendors': of v5e, v5p and v6e from `docs.cloud.google.com/tpu/docs/v5e`, `v5p` and `v6e` (197, 459 and 918 TFLOP/s; 16, 95 and
  32 GB; 400, 1200 and 800 GB/s in both directions together), of the H100 SXM from NVIDIA's data sheet (989 TFLOP/s, 80 GB, NVLink of 900 GB/s).
"""

SCALING = """\
## From 8 to 512 chips

The recipe's batch over more chips. A chip sends per step, by ring algorithms, P being its parameters (divided by `tensor`) and A the number of micro-batches:

- `fsdp` = n: A x (n - 1) / n x 8 P bytes: weights gathered in bfloat16 for the forward and the backward pass, gradients scattered in float32. Where XLA
  gathers before it casts, it is 12 P. With `data` = n instead, an all-reduce of the gradients: the same 8 P bytes.
- `tensor` = t, where there are more chips than examples: 12 x layers x (t - 1) / t x tokens x width x 2 bytes, where tokens are those of its group.
- between domains (256 chips of v5e and v6e, 8 H100s), by `data`: A x 2 x (s - 1) / s x 4 P / n bytes for s of them.

A is the largest number up to the recipe's that divides the examples of a chip. Time is bytes / bandwidth in one direction:

{links}

The network of v6e is taken to be that of v5p, and that of H100s to be 400 Gbit/s for each. The efficiency is the share of the time that is computation:
first if all communication waits for it, then if all of it is hidden. A low utilization flatters it. Latencies and stragglers are not counted. `-`: too little
memory, or more chips than examples of a part that `tensor` does not split.
"""


TOKENS = """\
## Tokens of 100,000 hours

`musiclm tokenize` with the frozen models of the size `base`: FLOPs of a record of 30 s, and hours and dollars of one chip at {share:.0%} of its peak, which is
**assumed**. MuLan embeds 21 windows of 10 s in each record. A record has {bytes:,} bytes without captions, so that 100,000 hours are {gb:,.0f} GB.
"""


def table(heads: list[str], rows: list[list[str]]) -> list[str]:
    line = lambda cells: f"| {' | '.join(cells)} |"  # noqa: E731
    return [line(heads), "|" + "---|" * len(heads), *map(line, rows), ""]


def load_row(load: Load) -> list[str]:
    size = lambda count: f"{count / 2**30:.1f}"  # noqa: E731
    amount = f"{load.amount:,.0f} {load.unit}"
    cells = [load.name, str(load.batch), str(load.micro_batches), amount, f"{load.flops:.2e}", size(load.state), size(load.activations)]
    return [*cells, f"{load.utilization:.1%}", f"{load.steps:,}"]


def chip_rows(chip: Chip, loads: list[Load]) -> list[list[str]]:
    rows = []
    for load in loads:
        if (chips := load.at_least(chip)) is None:
            rows.append([load.name, *["-"] * 6])
            continue
        seconds, hours = load.seconds(chip, chips), load.chip_hours(chip)
        memory, rate = f"{load.memory(chips) / 1e9:.1f}", f"{load.amount / seconds:,.0f} {load.unit}"
        rows.append([load.name, str(chips), memory, f"{seconds:.2f}", rate, f"{hours / chips:,.0f}", f"{hours * chip.price:,.0f}"])
    return rows


def scaling_rows(load: Load, chips: tuple[Chip, ...]) -> list[list[str]]:
    rows = []
    for count in SIZES:
        how = plan(load, chips[0], count)
        if how is None:
            continue
        inside = traffic(load, how)[0] / 1e9
        shares = [efficiency(load, chip, count) for chip in chips]
        cells = ["-" if share is None else f"{share[0]:.0%} to {share[1]:.0%}" for share in shares]
        rows.append([str(count), str(how.micro_batches), str(how.tensor), f"{inside:.1f}", *cells])
    return rows


def tokenizing_row(chip: Chip, flops: dict[str, float]) -> list[str]:
    hours = HOURS * 3600 / RECORD_SEC * sum(flops.values()) / (chip.peak * TOKENIZING) / 3600
    return [chip.name, *(f"{value:.2e}" for value in flops.values()), f"{hours:,.0f}", f"{hours * chip.price:,.0f}"]


def page(loads: list[Load], chips: tuple[Chip, ...], tokenizing: dict[str, float]) -> str:
    prices = ", ".join(f"{chip.name} ${chip.price:g}" for chip in chips)
    links = "\n".join(f"- {chip.name}: {chip.link / 1e9:g} GB/s within {chip.domain} chips, {chip.network / 1e9:g} GB/s beyond" for chip in chips)
    lines = [INTRODUCTION.format(usable=USABLE, prices=prices), "## The steps", ""]
    heads = ["part", "batch", "micro-batches", "a batch is", "FLOP", "state, GiB", "activations, GiB", "utilization", "steps"]
    lines += table(heads, [load_row(load) for load in loads])
    for chip in chips:
        lines += [f"## On {chip.name}", ""]
        lines += table(["part", "chips at least", "GB per chip", "seconds per step", "per second", "hours", "dollars"], chip_rows(chip, loads))
    lines += [TOKENS.format(share=TOKENIZING, bytes=RECORD_BYTES, gb=HOURS * 3600 / RECORD_SEC * RECORD_BYTES / 1e9)]
    lines += table(["chip", *(f"{name}, FLOP" for name in tokenizing), "hours of a chip", "dollars"], [tokenizing_row(chip, tokenizing) for chip in chips])
    lines += [SCALING.format(links=links)]
    for load in loads:
        if load.name in SCALED:
            heads = ["chips", "micro-batches", "tensor", f"GB sent per {chips[0].name} chip", *(chip.name for chip in chips)]
            lines += [f"### {load.name}", "", *table(heads, scaling_rows(load, chips))]
    return "\n".join(lines).rstrip() + "\n"


def _pair(text: str) -> tuple[str, float]:
    name, _, number = text.partition("=")
    try:
        if float(number) > 0:
            return name, float(number)
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text!r}: expected NAME=NUMBER, a number above 0")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--price", action="append", default=[], type=_pair, metavar="CHIP=DOLLARS")
    parser.add_argument("--utilization", action="append", default=[], type=_pair, metavar="PART=SHARE")
    args = parser.parse_args()
    prices, shares = dict(args.price), dict(args.utilization)
    if max(shares.values(), default=0) > 1:
        parser.error(f"a utilization of {max(shares.values())}: choose a share of 1 or less")
    if unknown := prices.keys() - {chip.name for chip in CHIPS} | shares.keys() - set(PARTS):
        parser.error(f"{min(unknown)} is neither a chip ({', '.join(chip.name for chip in CHIPS)}) with a price nor a part with a utilization")
    chips = tuple(dataclasses.replace(chip, price=float(prices.get(chip.name, chip.price))) for chip in CHIPS)
    loads = [measure(name) for name in PARTS]
    loads = [dataclasses.replace(load, utilization=float(shares.get(load.name, load.utilization))) for load in loads]
    OUT.write_text(page(loads, chips, measure_tokenizing()), encoding="utf-8")


if __name__ == "__main__":
    main()
