"""`musiclm fit` and `musiclm train`."""

from __future__ import annotations

from pathlib import Path

import click

from musiclm_jax.cli.options import LocalPlace, Place, use_compilation_cache
from musiclm_jax.errors import UserError

# Passes --gin.NAME=VALUE on as an argument.
GIN = {"ignore_unknown_options": True}
# Names of steps from before the first release -> their names now.
_FORMER_STEPS = {"soundstream": "codec"}


def host_options(command):
    """Adds the options by which several processes find each other."""
    for option in (
        click.option("--timeout", type=click.IntRange(1, 86_400), default=300, show_default=True, help="Seconds to wait for the other processes at the start."),
        click.option("--process_id", type=int, help="Number of this process, from 0 on."),
        click.option("--num_processes", type=click.IntRange(1), help="Number of processes that train as one."),
        click.option("--coordinator", metavar="HOST:PORT", help="Address of process 0. On TPUs, SLURM and Open MPI leave these three out."),
    ):
        command = option(command)
    return command


def config_options(command):
    """Adds the options that decide a FitConfig: see `load_training_config`."""
    command = click.argument("bindings", metavar="[--gin.NAME=VALUE]...", nargs=-1, type=click.UNPROCESSED)(command)
    gin_file = click.option(
        "--gin_file", "gin_files", type=LocalPlace(), multiple=True, help="Gin file with changes to the size; repeatable, a later one wins."
    )
    size = click.option("--size", help="A file of gin_configs/models: test, demo or base.  [default: demo; with a recipe of gin_configs/runs, its size]")
    return size(gin_file(command))


def training_options(*, workdir_required: bool):
    """A decorator that adds the options which `fit` and `train` share."""

    def decorate(command):
        workdir = click.option(
            "--workdir", type=Place(), required=workdir_required, help="Folder for checkpoints, logs and the bundle, also gs://BUCKET/FOLDER."
        )
        plan = click.option("--plan", "only_plan", is_flag=True, help="Print which steps would run and why, and stop.")
        return workdir(plan(host_options(config_options(command))))

    return decorate


@click.command(context_settings=GIN, short_help="Trains all models on your captioned clips.")
@click.argument("data", metavar="DATA", type=Place())
@training_options(workdir_required=True)
def fit(data, size, workdir, gin_files, bindings, only_plan, **processes) -> None:
    """Trains all models on the captioned clips in the folder DATA, and writes a bundle.

    It can be stopped at any time; the same command continues. With other settings it prints which steps it will redo, and moves their former results to
    WORKDIR/superseded; nothing is deleted. --gin.NAME=VALUE changes a single value, such as --gin.SEMANTIC_STEPS=500.
    """
    use_compilation_cache(preallocate=not only_plan)
    config, text = load_training_config(size, gin_files, bindings)
    from musiclm_jax.parts import fit as fit_lib
    from musiclm_jax.training import hosts

    if only_plan:
        return _print_plan(fit_lib.plan(data, config=config, workdir=workdir))
    hosts.start(**processes)
    bundle = fit_lib.fit(data, config=config, workdir=workdir, config_text=text)
    hosts.say(f'{bundle}: the bundle; try: musiclm generate "..." --model {bundle}')


@click.command(context_settings=GIN, short_help="Runs one step of fit, or trains the melody embedder.")
@click.argument("step")
@click.argument("data", metavar="[DATA]", required=False)
@training_options(workdir_required=False)
@click.option("--dry_run", is_flag=True, help="Print sizes, memory and FLOPs of a training step, without training. Needs no DATA and no --workdir.")
@click.option("--shapes", is_flag=True, help="With --dry_run: estimate the activations instead of compiling the step, which takes some ten seconds.")
@click.option("--profile", is_flag=True, help="Write a trace of steps 10 to 15 to WORKDIR/STEP/profile.")
def train(step, data, size, workdir, gin_files, bindings, dry_run, shapes, profile, only_plan, **processes) -> None:
    """Runs one STEP of `fit`; the steps before it must be done. `musiclm fit --plan` lists the steps.

    A further step is melody, which trains the melody embedder on clips with a "melody"; with runs/with_melody.gin it is a step of `fit`.

    \b
    musiclm train semantic --gin_file runs/semantic_base.gin --dry_run --gin.MeshConfig.data=2 --gin.MeshConfig.fsdp=4
    """
    if step in _FORMER_STEPS:
        click.echo(f"musiclm: the step {step} is called {_FORMER_STEPS[step]} now", err=True)
        step = _FORMER_STEPS[step]
    if step.startswith("-"):
        raise click.UsageError(f"No such option: {step}", ctx=click.get_current_context())
    if data and data.startswith("--"):  # Without DATA, click takes the first binding for it.
        data, bindings = None, (data, *bindings)
    use_compilation_cache(preallocate=not (dry_run or only_plan))
    if shapes and not dry_run:
        raise click.UsageError("--shapes is an option of --dry_run: add that, too.", ctx=click.get_current_context())
    if dry_run:
        from musiclm_jax.parts.dry_run import dry_run as weigh

        return click.echo(weigh(step, load_training_config(size, gin_files, bindings)[0], compiled=not shapes))
    if data is not None:
        context = click.get_current_context()
        data = Place()(data, param=next(each for each in context.command.params if each.name == "data"), ctx=context)
    if data is None or workdir is None:
        raise click.UsageError("Training needs DATA, the folder of the clips, and --workdir; only --dry_run needs neither.", ctx=click.get_current_context())
    config, text = load_training_config(size, gin_files, (*bindings, "--gin.TrainConfig.profile=True") if profile else bindings)
    if profile and step in config.steps and config.steps[step].num_steps is None:
        raise UserError(f"--profile: {step} is not a training; choose one that is, such as semantic")
    from musiclm_jax.parts import fit as fit_lib
    from musiclm_jax.training import hosts

    if only_plan:
        return _print_plan(fit_lib.plan(data, config=config, workdir=workdir, step=step))
    hosts.start(**processes)
    fit_lib.run_step(step, data, config=config, workdir=workdir, config_text=text)


def load_training_config(size: str | None, gin_files: tuple[Path, ...], bindings: tuple[str, ...]):
    """The FitConfig, and the values that it was made of, as the text of a gin file."""
    for binding in bindings:
        if not binding.startswith("--gin."):
            raise click.UsageError(f"No such option or argument: {binding}", ctx=click.get_current_context())
    try:
        from musiclm_jax.cli.gin_config import load_config, operative_config
    except ModuleNotFoundError as error:
        raise UserError(f"training needs the package {error.name}; install it with: pip install 'musiclm-jax[train]'") from error
    config = load_config(size, gin_files, [binding.removeprefix("--gin.") for binding in bindings])
    return config, operative_config()


def _print_plan(planned) -> None:
    for each in planned:
        click.echo(str(each))
