"""Odd calls of every command: does any end in a traceback? `python -m checks.odd_calls [FOLDER] [WORD]...`, in the root of the repository.

Each call runs in a folder of its own, with copies of clips, of a finished `fit --size test` and of its bundle. The rules: no traceback; status 0, or 2 with
one line "musiclm: ..." on stderr, which names what is wrong; and a call that fails writes, changes and removes nothing. The rules are tested, and each message
is written to FOLDER/messages.txt for a person to read, because no rule can tell whether a message helps.

Calls run in forks of this process, which has imported everything and used no device. FOLDER keeps clips, fit and compiled programs for the next time
(default: a new folder); remove it after a change of their formats. With WORDs, only those calls run whose description contains one of them.
"""

import collections
import os
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

from checks.odd_calls.bundles import bundle_calls
from checks.odd_calls.calls import lines_of_clips, write_metadata, write_tones
from checks.odd_calls.data import data_calls
from checks.odd_calls.evaluations import evaluation_calls
from checks.odd_calls.gin_values import gin_calls, setting_calls
from checks.odd_calls.options import option_calls
from checks.odd_calls.running import Running
from checks.odd_calls.work_folders import work_folder_calls

PACKAGE = Path(__file__).resolve().parents[2]
AT_ONCE = 2


def main() -> None:
    arguments = sys.argv[1:]
    fixtures = Path(arguments[0] if arguments else tempfile.mkdtemp(prefix="odd_calls-")).resolve()
    fixtures.mkdir(exist_ok=True)
    os.environ |= {"PYTHONPATH": str(PACKAGE), "MUSICLM_CACHE_DIR": str(fixtures / "cache"), "JAX_PLATFORMS": "cpu", "TF_CPP_MIN_LOG_LEVEL": "2"}
    os.environ["XLA_FLAGS"] = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    prepare(fixtures)
    import_all()
    warnings.simplefilter("ignore")
    settings = (fixtures / "work" / "fine" / "config.gin").read_text()
    calls = [*option_calls(), *evaluation_calls(), *data_calls(), *work_folder_calls()]
    calls += [*gin_calls(), *setting_calls(settings), *bundle_calls(fixtures / "bundle")]
    calls = [call for call in calls if not arguments[1:] or any(word in str(call) for word in arguments[1:])]
    began = time.monotonic()
    broken = run(calls, fixtures)
    for command, count in sorted(collections.Counter(call.command for call in calls).items()):
        print(f"{command:20} {count} calls")
    print(f"{len(calls)} calls in {time.monotonic() - began:.0f} s; {broken} break a rule")
    sys.exit(bool(broken))


def prepare(folder: Path) -> None:
    """Makes clips, work (a finished fit, and a melody embedder), bundle and passages (an index of the clips) in `folder`, unless they are there."""
    if (folder / "passages").is_dir():
        return
    write_tones(folder / "clips", [f"{i:02d}.wav" for i in range(12)])
    write_metadata(folder / "clips", lines_of_clips())
    program = [sys.executable, "-m", "musiclm_jax.cli.main"]
    for command in ("fit clips", "train melody clips"):
        subprocess.run([*program, *command.split(), "--size", "test", "--workdir", "work"], cwd=folder, check=True)
    shutil.copytree(folder / "work" / "export" / "bundle", folder / "bundle", dirs_exist_ok=True)
    (folder / "passages").mkdir()
    subprocess.run([*program, *"evaluate index clips --out passages/index.npz --model bundle".split()], cwd=folder, check=True)


def import_all() -> None:
    """Imports what commands import when they run, so that forks need not."""
    import musiclm_jax.cli.gin_config
    import musiclm_jax.corpus
    import musiclm_jax.evaluation.adherence
    import musiclm_jax.evaluation.codec
    import musiclm_jax.evaluation.diversity
    import musiclm_jax.evaluation.fad
    import musiclm_jax.evaluation.kld
    import musiclm_jax.evaluation.listening
    import musiclm_jax.evaluation.mcc
    import musiclm_jax.evaluation.melody
    import musiclm_jax.evaluation.memorization
    import musiclm_jax.evaluation.mulan
    import musiclm_jax.evaluation.musiccaps
    import musiclm_jax.evaluation.semantic
    import musiclm_jax.evaluation.summary  # noqa: F401
    from musiclm_jax.evaluation.extras import require

    require("librosa", "sklearn.metrics", "sklearn.pipeline", "sklearn.linear_model", "pyloudnorm")


def run(calls: list, fixtures: Path) -> int:
    """Runs the calls, prints those that break a rule, and returns how many."""
    broken, running = 0, []
    waiting = list(enumerate(calls))[::-1]
    folder = Path(tempfile.mkdtemp(prefix="calls-", dir=fixtures))
    with (fixtures / "messages.txt").open("w") as messages:
        while waiting or running:
            while waiting and len(running) < AT_ONCE:
                number, call = waiting.pop()
                running.append(Running(call, folder / f"{number:04d}", fixtures))
            for each in [each for each in running if each.has_ended()]:
                running.remove(each)
                rules, message = each.broken_rules(), short(each.err.strip())
                print(f"{each.call}\n    {each.status}, {each.seconds:.1f} s: {message}", file=messages, flush=True)
                if rules:
                    broken += 1
                    print(f"{each.call}\n    {'; '.join(rules)}\n        {message}", flush=True)
                shutil.rmtree(each.folder, ignore_errors=True)
            time.sleep(0.02)
    shutil.rmtree(folder, ignore_errors=True)
    return broken


def short(text: str) -> str:
    return text if len(text) <= 600 else f"{text[:300]} ... {text[-300:]}"


if __name__ == "__main__":
    main()
