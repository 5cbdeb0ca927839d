"""Shardings: rules, mirrors of parameters in the optimizer, and four devices that train as one does."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import pytest
from jax.sharding import PartitionSpec
from tiny_task import TinyTask

from musiclm_jax.errors import UserError
from musiclm_jax.training import sharding

PROGRAM = """
    import json, sys, jax, numpy as np
    from tiny_task import source, tiny
    from musiclm_jax.training.sharding import MeshConfig
    from musiclm_jax.training.loop import TrainConfig, train

    mesh = MeshConfig(**json.loads(sys.argv[1]))
    task = tiny(int(sys.argv[3]), schedule="constant")
    state = train(task, source, workdir=sys.argv[2], config=TrainConfig(log_every=1, mesh=mesh), identity="tiny").state
    up = state.params["up"]
    moments = [x for x in jax.tree.leaves(state.opt_state) if x.shape == up.shape]
    print("RESULT", json.dumps({
        "up": np.asarray(up).tolist(),
        "spec": [str(up.sharding.spec), *(str(x.sharding.spec) for x in moments)],
        "shard": up.addressable_shards[0].data.shape,
    }))
"""


SAMPLING = """
    import json, jax, numpy as np, test_sampler as t
    from musiclm_jax.generation.devices import row_mesh
    from musiclm_jax.generation.sampler import SamplingConfig, sample_codes

    decoder, _, params, prefix_ids = t.build_stage()
    prompt = np.random.default_rng(3).integers(11, size=(2, 2, 2), dtype=np.int32)
    options = {"num_steps": 6, "keys": t.keys_of(6, seed=1), "sampling": SamplingConfig(guidance=2.0)}
    codes = [sample_codes(decoder, params, prefix_ids[:2], prompt=prompt, **options)]
    codes.append(sample_codes(decoder, params, prefix_ids[np.arange(6) % 3], **options))
    print("RESULT", json.dumps({"codes": [x.tolist() for x in codes], "devices": [row_mesh(rows).size for rows in (1, 2, 5, 6, 8)]}))
"""


# Prints the memory and the collectives of the compiled training step of a stage.
COMPILED = """
    import collections, contextlib, json, re, sys, jax, numpy as np
    from jax.sharding import NamedSharding, PartitionSpec
    from small_streams import make_streams, stage_layout
    from musiclm_jax.models.stage import StageConfig
    from musiclm_jax.tasks.stage import StageRecipe, StageTask
    from musiclm_jax.training import sharding

    layout = stage_layout("semantic", make_streams(mulan=(3, 5), semantic=97, acoustic=(5, 11)))
    task = StageTask("semantic", StageConfig(dim=256, num_layers=3, num_heads=8, head_dim=32, mlp_dim=512), layout, StageRecipe())
    shapes = {"mulan": jax.ShapeDtypeStruct((32, 3), np.int32), "semantic": jax.ShapeDtypeStruct((32, 150), np.int32)}
    key = jax.eval_shape(lambda: jax.random.key(0))
    boxed, found = jax.eval_shape(task.init_state, key), {}
    for sizes in json.loads(sys.argv[1]):
        mesh = sharding.make_mesh(sharding.MeshConfig(*sizes))
        shardings, split = sharding.state_shardings(boxed, mesh), NamedSharding(mesh, PartitionSpec(sharding.BATCH_AXES))
        place = lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)
        state = jax.tree.map(place, sharding.unbox(boxed), shardings)
        batch = {name: place(shape, split) for name, shape in shapes.items()}
        with sharding.activate(mesh):
            program = jax.jit(task.train_step, donate_argnums=0, out_shardings=(shardings, None)).lower(state, batch, key).compile()
        count = collections.Counter()
        for line in program.as_text().splitlines():
            if made := re.search(r" = (.+?) (all-reduce|all-gather|reduce-scatter|all-to-all)(?:-start)?\\(", line):
                arrays = [[int(size) for size in dims.split(",") if size] for dims in re.findall(r"f32\\[([\\d,]*)\\]", made[1])]
                # Activations have the length of the sequence as a dimension, and the gradient of the bias [T, T] has it twice.
                kind = "activations" if any(array.count(152) == 1 for array in arrays) else "weights"
                count[made[2] + " of " + kind] += sum(int(np.prod(array)) for array in arrays)
        parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
        found[str(sizes)] = {"bytes": program.memory_analysis().temp_size_in_bytes, "parameters": parameters, **count}
    print("RESULT", json.dumps(found))
"""


SPECTRA = """
    import json, jax, jax.numpy as jnp, numpy as np
    from jax.sharding import NamedSharding, PartitionSpec
    from musiclm_jax.audio.features import magnitude, stft
    from musiclm_jax.training import sharding

    mesh = sharding.make_mesh(sharding.MeshConfig(data=2, fsdp=2))
    wave = np.random.default_rng(0).normal(size=(8, 240)).astype(np.float32)
    loss = lambda wave: jnp.sum(magnitude(stft(wave, window=24, hop=12)) ** 1.5)
    plain = jax.jit(jax.value_and_grad(loss))(wave)
    split = jax.device_put(wave, NamedSharding(mesh, PartitionSpec(sharding.BATCH_AXES)))
    with sharding.activate(mesh):
        program = jax.jit(jax.value_and_grad(loss)).lower(split).compile()
    np.testing.assert_allclose(program(split)[0], plain[0], rtol=1e-5)
    np.testing.assert_allclose(program(split)[1], plain[1], atol=1e-4)
    print("RESULT", json.dumps("all-gather" in program.as_text()))
"""


def run_program(program, *args, devices):
    tests = Path(__file__).parents[1]
    env = {**os.environ, "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}", "JAX_PLATFORMS": "cpu"}
    env["PYTHONPATH"] = os.pathsep.join([str(tests), str(tests / "generation"), str(tests.parent), env.get("PYTHONPATH", "")])
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program), *args], env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.split("RESULT ")[1])


def run(devices, workdir, mesh, *, steps=3):
    result = run_program(PROGRAM, json.dumps(mesh), str(workdir), str(steps), devices=devices)
    losses = [json.loads(line)["loss"] for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return losses, result


def test_four_devices_train_as_one_and_take_over_its_checkpoint(tmp_path):
    losses, result = run(1, tmp_path / "one", {})
    sharded, result4 = run(4, tmp_path / "four", {"fsdp": 2, "tensor": 2})
    assert sharded == pytest.approx(losses, rel=1e-5)
    assert sum(result4["up"], []) == pytest.approx(sum(result["up"], []), rel=1e-4, abs=1e-6)
    # The parameter and both of its Adam moments lie in four pieces of [8 / 2, 12 / 2].
    assert result4["spec"] == [str(PartitionSpec("fsdp", "tensor"))] * 3 and result4["shard"] == [4, 6]
    # A run goes on with another number of devices.
    on_four, _ = run(4, tmp_path / "one", {"data": 2, "fsdp": 2}, steps=5)
    on_one, _ = run(1, tmp_path / "reference", {}, steps=5)
    assert on_four == pytest.approx(on_one, rel=1e-5)


def test_fsdp_gathers_weights_and_splits_activations_by_batch_alone():
    """Without constraints XLA would split activations by width: more than four times the memory here, and all-reduces of activations in each layer."""
    data, fsdp = run_program(COMPILED, json.dumps([(8, 1, 1), (1, 8, 1)]), devices=8).values()
    assert fsdp["bytes"] < 1.2 * data["bytes"] + 4 * fsdp["parameters"]
    # The body of the scan over three layers counts once.
    assert fsdp["all-gather of weights"] > fsdp["parameters"] / 3 and "all-gather of weights" not in data
    assert not [name for name in {**data, **fsdp} if name.endswith("activations")]


def test_spectra_are_computed_where_their_waves_are():
    assert run_program(SPECTRA, devices=4) is False


def test_devices_sample_what_one_does():
    one, four = run_program(SAMPLING, devices=1), run_program(SAMPLING, devices=4)
    assert four["codes"] == one["codes"]
    assert one["devices"] == [1] * 5 and four["devices"] == [1, 2, 1, 3, 4]


class FakeChip:
    """A chip of a TPU slice with 2 x 2 x 2 chips."""

    platform, device_kind = "tpu", "fake"

    def __init__(self, number):
        self.id, self.slice_index, self.process_index = number, number // 8, number // 4
        self.coords, self.core_on_chip = (number % 2, number // 2 % 2, number // 4 % 2), 0

    def __repr__(self):
        return f"{self.slice_index}/{self.id}"


def test_only_the_axis_data_crosses_slices():
    chips = [FakeChip(number) for number in (*range(8, 16), *range(8))]
    assert sharding.num_slices(chips) == 2 and sharding.num_slices(jax.devices()) == 1
    grid = sharding.hybrid_devices((4, 2, 2), chips, slices=2)
    assert grid.shape == (4, 2, 2) and sorted(chip.id for chip in grid.flat) == list(range(16))
    assert [[chip.slice_index for chip in row.flat] for row in grid] == [[0] * 4, [0] * 4, [1] * 4, [1] * 4]
    with pytest.raises(UserError, match="data=1 does not split over 2 slices"):
        sharding.hybrid_devices((1, 8, 2), chips, slices=2)
    with pytest.raises(UserError, match="dcn_data=4: the devices are of 2 slices"):
        sharding.hybrid_devices((4, 2, 2), chips, slices=4)


def test_one_device_needs_nothing():
    mesh = sharding.make_mesh()
    assert mesh.shape == {"data": 1, "fsdp": 1, "tensor": 1}
    shapes = jax.eval_shape(TinyTask().init_state, jax.random.key(0))
    shardings = sharding.state_shardings(shapes, mesh)
    assert jax.tree.structure(shardings) == jax.tree.structure(sharding.unbox(shapes))


def test_a_dimension_that_does_not_divide_is_replicated():
    mesh = jax.sharding.AbstractMesh((1, 2, 2), ("data", "fsdp", "tensor"))
    shapes = jax.eval_shape(TinyTask().init_state, jax.random.key(0))
    specs = jax.tree.map(lambda x: x.spec, sharding.state_shardings(shapes, mesh))
    assert specs.params == {"up": PartitionSpec("fsdp", "tensor"), "down": PartitionSpec("tensor", "fsdp"), "bias": PartitionSpec(None)}
    assert specs.stats == {"mean": PartitionSpec()} and specs.step == PartitionSpec()


def test_mistakes_are_named():
    with pytest.raises(UserError, match="does not tile the 1 devices"):
        sharding.make_mesh(sharding.MeshConfig(fsdp=3))
    with pytest.raises(UserError, match="tensor=0"):
        sharding.MeshConfig(tensor=0)
