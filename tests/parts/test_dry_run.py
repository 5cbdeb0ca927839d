"""A dry run: counts against hand arithmetic, memory that falls with the mesh, and no array anywhere."""

import jax
import jax.numpy as jnp
import pytest
from tiny_task import TinyTask

from musiclm_jax.cli.gin_config import load_config
from musiclm_jax.errors import UserError
from musiclm_jax.parts.dry_run import _bytes, _with_rows, dry_run
from musiclm_jax.parts.trained import TrainedPart
from musiclm_jax.tasks.stage import StageTask
from musiclm_jax.training import sharding
from musiclm_jax.training.compiled import compile_step, temporaries
from musiclm_jax.training.cost import count_activations, count_flops

TRAINED = [part.name for part in load_config("test").parts if isinstance(part, TrainedPart)]


def on_mesh(name, data, fsdp, tensor, size="base"):
    sizes = {"data": data, "fsdp": fsdp, "tensor": tensor}
    return dry_run(name, load_config(size, bindings=[f"MeshConfig.{axis}={count}" for axis, count in sizes.items()]))


def flops(fn, *shapes):
    return count_flops(jax.make_jaxpr(fn)(*(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)).jaxpr)


def activations(fn, *weights, rows=3):
    """In values of the size of the argument, a batch of `rows` x 7."""
    shapes = lambda rows: [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((rows, 7), *weights)]  # noqa: E731
    small, large = (jax.make_jaxpr(fn)(*shapes(count)).jaxpr for count in (rows, 2 * rows))
    return count_activations(small, large) / (rows * 7 * 4)


@pytest.mark.parametrize("size", ["test", "demo"])
@pytest.mark.parametrize("name", TRAINED)
def test_every_trained_step(name, size):
    config = load_config(size)
    report = dry_run(name, config)
    assert report.trained > 0 and report.flops > 6 * report.trained and report.bytes_per_device["parameters"] == 4 * report.trained
    assert str(report).startswith(f"{name}: ") and ("tokens to predict" in str(report)) == (name in ("semantic", "coarse", "fine"))


def test_the_semantic_stage_of_the_paper():
    report = dry_run("semantic", load_config("base", bindings=["MeshConfig.data=1", "StageConfig.remat='none'"]))
    assert f"{report.trained / 1e6:.1f}" == "430.0" and report.total == report.exported == report.trained
    assert (report.tokens, report.seconds) == ((256 * 750, 256 * 762), 256 * 30)
    assert report.flops == pytest.approx(6 * report.trained * report.tokens[1], rel=0.05)  # Attention on top, the input table less.


def test_memory_falls_with_the_axes_that_split_it():
    one, data, fsdp, both = (on_mesh("semantic", *mesh) for mesh in ((1, 1, 1), (2, 1, 1), (2, 4, 1), (1, 4, 2)))
    held = lambda report: {name: size for name, size in report.bytes_per_device.items() if name != "activations"}  # noqa: E731
    assert held(one) == held(data)
    # Of the batch, which `tensor` does not split.
    assert [one.bytes_per_device["activations"] // report.bytes_per_device["activations"] for report in (one, data, fsdp, both)] == [1, 2, 8, 4]
    # Adafactor keeps a number for each row and column, of which it does not matter how they are split.
    assert max(report.bytes_per_device["optimizer"] / report.bytes_per_device["parameters"] for report in (one, fsdp, both)) < 0.006
    for held in ("parameters", "gradients"):
        assert fsdp.bytes_per_device[held] / one.bytes_per_device[held] == pytest.approx(1 / 4, rel=0.02)
    # The input table, 3 % of all, is not split by `tensor`: with the row of mask_id its rows are odd in number.
    assert both.bytes_per_device["parameters"] / one.bytes_per_device["parameters"] == pytest.approx(1 / 8, rel=0.04)
    assert "data=2, fsdp=4, tensor=1: devices 8" in str(fsdp)


@pytest.mark.parametrize("remat", ["none", "products", "full"])
def test_work_of_a_stage_is_that_of_its_products(remat):
    changes = {"dim": 6, "num_layers": 5, "num_heads": 3, "head_dim": 2, "mlp_dim": 7, "remat": repr(remat)}
    config = load_config("test", bindings=[f"coarse/StageConfig.{name}={value}" for name, value in changes.items()])
    part = config.part("coarse")
    task, batch = part.task(config), part.batch_shapes(config)
    assert isinstance(task, StageTask)
    length = task.layout.num_tokens(1.0) - 1
    rows = part.batch_size * length
    projections = rows * (4 * 6 * 3 * 2 + 3 * 6 * 7)
    attention = 2 * rows * length * 3 * 2
    head = batch["acoustic"].shape[0] * batch["acoustic"].shape[1] * task.layout.target.levels * task.layout.target.codes * 6
    layers = 5 * (projections + attention)
    report = dry_run("coarse", config)
    # Two per multiplication; forward, and twice as much backward. Recomputation is once more forward, less each layer's last product.
    once_more = {"none": 0, "products": 5 * attention, "full": 5 * (projections - rows * 6 * 7 + attention)}[remat]
    assert report.flops == 2 * (3 * (layers + head) + once_more)


def test_an_example_of_the_melody_embedder_is_a_pair():
    config = load_config("test")
    assert dry_run("melody", config).seconds == pytest.approx(2 * 2 * 0.4)
    shapes = {name: value.shape for name, value in config.part("melody").batch_shapes(config).items()}
    assert shapes == {"wave": (2, 9600), "other_wave": (2, 9600), "melody": (2,)}


def test_loops_conditions_and_strided_convolutions():
    product = flops(lambda x, y: x @ y, (2, 3), (3, 5))
    assert product == 2 * 2 * 3 * 5
    assert flops(lambda x: jax.lax.scan(lambda x, _: (x @ x, None), x, length=7)[0], (3, 3)) == 7 * 2 * 27
    assert flops(lambda x: jax.lax.cond(x[0, 0] > 0, lambda: x, lambda: x @ x), (3, 3)) == 0
    assert flops(lambda x: jax.lax.cond(x[0, 0] > 0, lambda: x @ x, lambda: x), (3, 3)) == 2 * 27
    convolve = lambda x, kernel: jax.lax.conv_general_dilated(x, kernel, (3,), "VALID", feature_group_count=2)  # noqa: E731
    forward = 2 * 11 * 10 * 4 * (6 // 2) * 3
    shapes = (11, 6, 30), (4, 3, 3)
    assert flops(convolve, *shapes) == forward
    # By its inputs and by its kernel: as many products each as forward.
    assert flops(lambda x, kernel: jax.grad(lambda *both: convolve(*both).sum() ** 2, argnums=(0, 1))(x, kernel), *shapes) == 3 * forward


def test_values_are_held_from_their_making_to_their_last_use():
    sin, cos = jax.lax.sin, jax.lax.cos
    assert activations(lambda x: sin(sin(sin(sin(x))))) == 2

    def kept(x):
        first = sin(x)
        return first * sin(cos(cos(first)))

    assert activations(kept) == 3
    assert activations(lambda x, kernel: sin(kernel), (7, 7)) == 0  # Grows with no batch.
    assert activations(lambda x: cos(jnp.broadcast_to(sin(x)[:, None], (len(x), 5, 7)))) == 1 + 5
    # All layers' inputs and the last output, and in the body an output.
    assert activations(lambda x: jax.lax.scan(lambda x, _: (sin(x), x), x, length=11)) == 11 + 1 + 1
    assert activations(lambda x: jax.lax.cond(x[0, 0] > 0, lambda: sin(sin(x)), lambda: x)) == 2


def test_the_backward_pass_keeps_what_remat_does_not():
    layer = lambda x, kernel: (jnp.tanh(jnp.tanh(jnp.tanh(x @ kernel))), None)  # noqa: E731
    forward = lambda layer: lambda x, kernels: jnp.sum(jax.lax.scan(layer, x, kernels)[0])  # noqa: E731
    # Of each of 11 layers its input, for the kernel's gradient, and of each tanh one or two values; with remat the input, and one layer's values.
    assert 4 * 11 <= activations(jax.grad(forward(layer), argnums=1), (11, 7, 7)) < 8 * 11
    assert 11 <= activations(jax.grad(forward(jax.checkpoint(layer, prevent_cse=False)), argnums=1), (11, 7, 7)) < 2 * 11


def test_activations_of_a_stage_follow_batch_and_remat():
    def report(**changes):
        bindings = [f"coarse/{name.replace('__', '.')}={value}" for name, value in changes.items()]
        return dry_run("coarse", load_config("test", bindings=["coarse/StageConfig.num_layers=11", *bindings])).bytes_per_device

    two, four, recomputed = report(), report(StagePart__batch_size=4), report(StageConfig__remat="'full'")
    assert four == two | {"activations": 2 * two["activations"]}
    assert recomputed == two | {"activations": recomputed["activations"]} and recomputed["activations"] < two["activations"] / 2
    assert report(StagePart__batch_size=1)["activations"] == two["activations"] // 2
    # Two micro-batches of two have the activations of one, and two trees of gradients; their work is the same.
    micro = report(StagePart__batch_size=4, StageRecipe__accumulate=2)
    assert micro == two | {"activations": micro["activations"], "gradients": 2 * two["gradients"]}
    assert micro["activations"] == pytest.approx(two["activations"], rel=0.01)


def test_xla_holds_about_as_much():
    config = load_config("test")
    task, batch = config.part("fine").task(config), config.part("fine").batch_shapes(config)
    key = jax.eval_shape(lambda: jax.random.key(0))
    state = sharding.unbox(jax.eval_shape(task.init_state, key))
    batches = [_with_rows(batch, count) for count in (8, 16)]
    small, large = (jax.make_jaxpr(task.train_step)(state, each, key).jaxpr for each in batches)
    compiled = [jax.jit(task.train_step).lower(state, each, key).compile().memory_analysis().temp_size_in_bytes for each in batches]
    # 1.8 times here, since XLA fuses; 0.6 to 1.9 over all parts.
    assert 0.4 < count_activations(small, large) / (compiled[1] - compiled[0]) < 3


def test_a_compiled_dry_run_prints_what_xla_plans():
    def planned(**mesh):
        report = dry_run("fine", load_config("test", bindings=[f"MeshConfig.{axis}={size}" for axis, size in mesh.items()]), compiled=True)
        assert f"activations {_bytes(report.bytes_per_device['activations'])}" in str(report)
        return report.bytes_per_device["activations"] + report.bytes_per_device["gradients"]

    config = load_config("test")
    part = config.part("fine")
    here = compile_step(part.task(config), part.batch_shapes(config), sharding.make_mesh()).memory_analysis().temp_size_in_bytes
    assert planned(data=1) == pytest.approx(here, rel=0.25)
    # Half of the examples, and of the heads.
    assert here / 6 < planned(data=1, fsdp=2, tensor=2) < 0.6 * here


def test_a_step_that_does_not_compile_is_one_line():
    with pytest.raises(UserError, match="cannot be compiled for 1 virtual devices .*: add --shapes"):
        temporaries(TinyTask(), {"x": jax.ShapeDtypeStruct((), jnp.float32)}, sharding.MeshConfig(data=1))


@pytest.mark.parametrize("name", ["prepare", "kmeans", "rvq", "semantic_tokens", "acoustic_tokens", "export"])
def test_steps_that_train_nothing(name):
    with pytest.raises(UserError, match=f"{name}' is not a training.*choose one of codec"):
        dry_run(name, load_config("test"))


def test_mistakes():
    with pytest.raises(UserError, match="'semantics' does not exist: choose one of"):
        dry_run("semantics", load_config("test"))
    with pytest.raises(UserError, match="batch of 256 .* does not split into 2 micro-batches over 3 devices: choose a multiple of 6"):
        on_mesh("semantic", 3, 1, 1)
    with pytest.raises(UserError, match="fsdp=64, .* does not tile the . devices here"):
        on_mesh("semantic", -1, 64, 1)
