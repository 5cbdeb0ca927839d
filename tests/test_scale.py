"""docs/scale.md: a row against its dry run, and the arithmetic by hand."""

import dataclasses

import pytest
from scripts import ROOT, load_script

scale = load_script("docs/scale.py")
PAGE = (ROOT / "docs" / "scale.md").read_text(encoding="utf-8").splitlines()
CHIP = scale.Chip("chip", memory=100.0, peak=50.0, link=4.0, domain=4, network=0.5, price=3.0)
SIZES = {"steps": 7200, "batch": 16, "micro_batches": 2, "unit": "tokens", "amount": 48.0, "flops": 400.0, "parameters": 3, "state": 60, "activations": 200}
LOAD = scale.Load("part", **SIZES, utilization=0.2)


def test_the_page_is_that_of_its_script():
    text = f"{scale.INTRODUCTION}\n{scale.TOKENS}\n{scale.SCALING}".splitlines()
    assert not [line for line in text if "{" not in line and line not in PAGE], "run `python docs/scale.py`"
    load = scale.measure("semantic")
    assert scale.table([], [scale.load_row(load)])[2] in PAGE, "run `python docs/scale.py`"
    of_chips = [row for chip in scale.CHIPS for row in scale.chip_rows(chip, [load])]
    for row in [*of_chips, *scale.scaling_rows(load, scale.CHIPS)]:
        assert scale.table([], [row])[2] in PAGE, "run `python docs/scale.py`"


def test_chips_hours_and_memory():
    # 90 of 100 bytes are usable: 260 over 2 is too much, over 4 fits, and 16 examples split into 2 x 4.
    assert LOAD.at_least(CHIP) == 4 and LOAD.memory(4) == 65
    assert LOAD.memory(4, micro_batches=1) == (60 + 400) / 4
    assert LOAD.seconds(CHIP, 4) == 400 / (4 * 50 * 0.2) and LOAD.chip_hours(CHIP) == 7200 * 40 / 3600
    assert dataclasses.replace(LOAD, state=6000).at_least(CHIP) is None  # Over 128 chips, which 16 examples do not reach.


def test_traffic_by_hand():
    assert scale.plan(LOAD, CHIP, 4) == scale.Plan(fsdp=4, slices=1, tensor=1, micro_batches=2)
    assert scale.traffic(LOAD, scale.plan(LOAD, CHIP, 4)) == (2 * 3 / 4 * 3 * 8, 0)
    # Two domains of 4: each chip exchanges a quarter of the gradients.
    assert scale.plan(LOAD, CHIP, 8) == scale.Plan(fsdp=4, slices=2, tensor=1, micro_batches=2)
    assert scale.traffic(LOAD, scale.plan(LOAD, CHIP, 8)) == (2 * 3 / 4 * 3 * 8, 2 * 2 * 1 / 2 * 3 / 4 * 4)
    # More chips than examples: heads are split, if there are any.
    assert scale.plan(LOAD, CHIP, 32) is None
    stage, wide = dataclasses.replace(LOAD, layers=5, width=7), dataclasses.replace(CHIP, domain=32)
    assert scale.plan(stage, wide, 32) == scale.Plan(fsdp=16, slices=1, tensor=2, micro_batches=1)
    assert scale.traffic(stage, scale.plan(stage, wide, 32))[0] == 15 / 16 * 1.5 * 8 + 12 * 5 / 2 * 3 * 7 * 2


def test_efficiency_lies_between_no_overlap_and_full_overlap():
    computing, moving = 400 / (8 * 50 * 0.2), 36 / 4 + 6 / 0.5
    assert scale.efficiency(LOAD, CHIP, 8) == pytest.approx((computing / (computing + moving), computing / moving))
    assert scale.efficiency(dataclasses.replace(LOAD, flops=4e4), CHIP, 8)[1] == 1
    assert scale.efficiency(dataclasses.replace(LOAD, state=800), CHIP, 8) is None
