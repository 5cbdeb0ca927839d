"""What is redone and what is kept, on parts whose outputs are a few bytes: identities, plans, superseded folders, damage, locks."""

import contextlib
import functools
import json
import multiprocessing
import os

import pytest
from tiny_parts import read_metadata, tiny_parts, write_clips, write_metadata

from musiclm_jax.errors import UserError
from musiclm_jax.files import read_json
from musiclm_jax.parts.fit import FitConfig, fit, plan, run_step


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path)


class Place:
    """A data folder, a work folder, and what ran."""

    def __init__(self, folder):
        self.data, self.work, self.log = write_clips(folder / "data"), folder / "work", []

    def config(self, **changes):
        return FitConfig(parts=tiny_parts(self.log, **changes))

    def plan(self, **changes):
        """{step: action} of all that is not done, as `--plan` says."""
        planned = plan(self.data, config=self.config(**changes), workdir=self.work)
        return {each.step.name: each.action for each in planned if each.action != "done"}

    def fit(self, **changes):
        """What ran, in order; checked against the plan."""
        expected = self.plan(**changes)
        self.log.clear()
        fit(self.data, config=self.config(**changes), workdir=self.work)
        assert self.log == [name for name, action in expected.items() if name != "prepare" and action != "restore"]
        assert self.plan(**changes) == {}
        return list(self.log)

    def aside(self):
        folder = self.work / "superseded"
        return sorted(path.name for path in folder.iterdir()) if folder.exists() else []

    def captions(self, change):
        lines = read_metadata(self.data)
        change(lines)
        write_metadata(self.data, lines)


def test_each_step_runs_once(place, capsys):
    assert place.plan() == {"prepare": "new", "a": "new", "b": "new", "export": "new"}
    assert not place.work.exists() or sorted(path.name for path in place.work.iterdir()) == ["hashes.json"]
    assert place.fit() == ["a", "b", "export"]
    assert "[2/4] a: writing a" in capsys.readouterr().out
    assert place.fit() == []
    assert "[2/4] a: done" in capsys.readouterr().out and place.aside() == []
    # `fit` makes what the bundle needs; c is for `run_step`.
    assert run_step("c", place.data, config=place.config(), workdir=place.work) == {"length": 0} and place.log == ["c"]


@pytest.mark.parametrize(
    "change,ran",
    [
        # Mending a caption, adding one, or a file of the system: parts that read no captions are not redone.
        (lambda place: place.captions(lambda lines: lines[0].update(captions=["another text"])), ["b", "export"]),
        (lambda place: place.captions(lambda lines: lines[0]["captions"].append("one more")), ["b", "export"]),
        (lambda place: (place.data / ".DS_Store").write_bytes(b"\0\0\0\1Bud1"), []),
        (lambda place: (place.data / "notes.txt").write_text("mine"), []),
        (lambda place: os.utime(place.data / "0.wav"), []),
        # Ground truth decides nothing; nor does a melody, but for c.
        (lambda place: place.captions(lambda lines: lines[0].update(attributes={"mode": "minor"})), []),
        (lambda place: place.captions(lambda lines: lines[0].update(melody="tune")), []),
        # Another split is another training.
        (lambda place: place.captions(lambda lines: [line.update(split="train" if i else "test") for i, line in enumerate(lines)]), ["a", "b", "export"]),
        # As are other clips.
        (lambda place: (place.data / "1.wav").write_bytes((place.data / "0.wav").read_bytes()), ["a", "b", "export"]),
        (lambda place: place.captions(lambda lines: lines.pop()), ["a", "b", "export"]),
    ],
)
def test_a_change_of_the_data_redoes_what_reads_it(place, change, ran):
    place.captions(lambda lines: [line.update(split="test" if i == 2 else "train") for i, line in enumerate(lines)])
    place.fit()
    change(place)
    assert place.fit() == ran
    assert [name.rpartition("-")[0] for name in place.aside() if not name.startswith("prepare")] == sorted(ran)


@pytest.mark.parametrize(
    "changes,ran",
    [
        ({"a": {"text": "y"}}, ["a", "b", "export"]),
        ({"b": {"text": "y"}}, ["b", "export"]),
        ({"export": {"text": "y"}}, ["export"]),
        ({"c": {"text": "y"}}, []),
        ({"a": {"num_steps": 6}}, ["a", "b", "export"]),  # Longer: the same training.
        ({"a": {"num_steps": 2}}, ["a", "b", "export"]),  # Shorter: another.
    ],
)
def test_a_change_of_a_setting_redoes_what_depends_on_it(place, changes, ran):
    place.fit()
    before = {step: (place.work / step / "out").read_text() for step in ("a", "b", "export")}
    assert place.fit(**changes) == ran
    continued = changes.get("a", {}).get("num_steps") == 6
    aside = [step for step in ran if not (step == "a" and continued)]
    assert place.aside() == sorted(f"{step}-1" for step in aside)
    for step in aside:  # Whole, with the reason beside it.
        assert (place.work / "superseded" / f"{step}-1" / "out").read_text() == before[step]
        assert (place.work / "superseded" / f"{step}-1" / "WHY.txt").read_text()
    # And back: what was set aside is taken back, and nothing is run again; but for a training that was continued, which cannot become shorter.
    now = {step: (place.work / step / "out").read_text() for step in ran}
    assert place.fit() == (["a"] if continued else [])
    assert {step: (place.work / step / "out").read_text() for step in before} == before
    assert place.aside() == sorted(f"{step}-{2 if step in aside else 1}" for step in ran)
    for name in place.aside():
        assert (place.work / "superseded" / name / "out").read_text() == now[name[:-2]]


def test_the_plan_says_why(place):
    place.fit()
    reasons = lambda **changes: {  # noqa: E731
        each.step.name: "; ".join(each.reasons) for each in plan(place.data, config=place.config(**changes), workdir=place.work) if each.reasons
    }
    assert reasons(a={"text": "y"}) == {"a": "text: 'y', was 'x'", "b": "a changed", "export": "a changed; b changed"}
    assert reasons(a={"num_steps": 2})["a"] == "2 steps are requested, 4 were trained"
    assert reasons(a={"num_steps": 6})["a"] == "to step 6, from 4"
    place.captions(lambda lines: lines[0].update(captions=["y"]))
    assert reasons() == {"b": "the captions of the data changed", "export": "b changed"}


def test_fit_says_what_it_will_redo_before_it_does(place, capsys):
    place.fit()
    capsys.readouterr()
    place.fit(b={"text": "y"})
    out = capsys.readouterr().out.splitlines()
    assert out[0] == f"b: redo (text: 'y', was 'x'); the earlier output moves to {place.work / 'superseded' / 'b-1'}"
    assert out[1].startswith("export: redo (b changed)") and out[2].startswith("[1/4] prepare: done")


# ---------------------------------------------------------------------------------------------------------------------- Interrupted


def test_an_interrupted_training_continues_and_what_was_done_stays(place):
    place.fit()
    with pytest.raises(KeyboardInterrupt):
        fit(place.data, config=place.config(a={"num_steps": 8, "interrupt_at": 6}), workdir=place.work)
    # The shorter one is still done: nothing was taken away.
    assert place.plan() == {}
    assert place.plan(a={"num_steps": 8}) == {"a": "extend", "b": "redo", "export": "redo"}
    place.fit(a={"num_steps": 8})
    done = read_json(place.work / "a" / "done.json")
    assert done["num_steps"] == 8 and (place.work / "a" / "out").read_text() == "x8" and "a-1" not in place.aside()
    # A length in between was never a result.
    assert place.plan(a={"num_steps": 6})["a"] == "redo"


def test_the_history_of_a_length_is_part_of_the_identity(place):
    """With a cosine the weights of 8 steps in one go are others than those of 4 and 4 more: what depends on them must notice."""
    place.fit()
    place.fit(a={"num_steps": 8})
    continued = read_json(place.work / "a" / "done.json")["identity"]
    (place.work / "a").rename(place.work / "mine")
    assert place.plan(a={"num_steps": 8}) == {"a": "new", "b": "redo", "export": "redo"}
    place.fit(a={"num_steps": 8})
    assert read_json(place.work / "a" / "done.json")["identity"] != continued
    # The same history gives the same identity, and what depends on it is done.
    (place.work / "a").rename(place.work / "mine too")
    assert place.plan(a={"num_steps": 8}) == {"a": "new"}


def test_an_interrupted_step_runs_again_and_its_time_counts(place):
    with pytest.raises(KeyboardInterrupt):
        fit(place.data, config=place.config(b={"interrupt_at": 1}), workdir=place.work)
    assert place.plan() == {"b": "continue", "export": "new"}
    record = read_json(place.work / "b" / "step.json")
    record["seconds"] = 100.0
    (place.work / "b" / "step.json").write_text(json.dumps(record))
    place.fit()
    assert 100 <= read_json(place.work / "b" / "done.json")["seconds"] < 110


# ---------------------------------------------------------------------------------------------------------------------- Damage


@pytest.mark.parametrize("damage", [lambda path: path.write_text("zzz"), lambda path: path.write_text(""), lambda path: path.unlink()])
def test_damaged_outputs_are_made_again_and_nothing_else(place, damage):
    place.fit()
    damage(place.work / "a" / "out")
    assert place.plan() == {"a": "repair"}
    with pytest.raises(UserError, match=r"b needs the output of a, .* \(repair: .*a/out is (damaged|missing)\)"):
        run_step("b", place.data, config=place.config(), workdir=place.work)
    place.fit()
    assert (place.work / "a" / "out").read_text() == "x4" and place.aside() == []


def test_outputs_whose_bytes_were_zeroed_are_not_believed(place):
    place.fit()
    path = place.work / "b" / "out"
    status = path.stat()
    path.write_bytes(b"\0" * status.st_size)
    assert place.fit() == ["b"]


def test_damaged_samples_are_decoded_again_and_kept(place):
    """`prepare` takes samples that are there for those of an earlier call."""
    place.fit()
    path = place.work / "prepare" / "samples.npy"
    whole = path.read_bytes()
    for copy in ("samples.npy", "samples.npy-2"):
        damaged = whole[:-2] + copy[-2:].encode()
        path.write_bytes(damaged)
        assert place.plan() == {"prepare": "repair"}
        assert place.fit() == []
        assert path.read_bytes() == whole and (path.parent / "damaged" / copy).read_bytes() == damaged


@pytest.mark.parametrize("text", ["", "{", "\0\0", "[]", "3", "{}", "null"])
def test_damaged_records_have_one_remedy(place, text):
    place.fit()
    for name, remedy in (("done.json", "delete that file, and the step is completed again"), ("step.json", "move .*work/b away, and the step starts again")):
        path = place.work / "b" / name
        whole = path.read_text()
        path.write_text(text)
        with pytest.raises(UserError, match=f"^.*work/b/{name} is damaged: {remedy}$"):
            place.plan()
        path.write_text(whole)


def test_a_record_that_cannot_be_read_is_not_called_damaged(place):
    place.fit()
    (place.work / "b" / "done.json").unlink()
    (place.work / "b" / "done.json").mkdir()
    with pytest.raises(UserError, match="done.json cannot be read, Is a directory: check the path"):
        place.plan()


# ---------------------------------------------------------------------------------------------------------------------- Whose folder


def test_a_folder_that_is_not_ours_is_not_touched(place):
    (place.work / "b").mkdir(parents=True)
    (place.work / "b" / "master.wav").write_text("mine")
    for _ in range(2):
        with pytest.raises(UserError, match=r"work/b contains master.wav, which no training wrote: .* choose another work folder"):
            fit(place.data, config=place.config(), workdir=place.work)
    assert (place.work / "b" / "master.wav").read_text() == "mine" and place.log == []


def test_a_step_of_an_older_version_is_set_aside(place):
    (place.work / "b").mkdir(parents=True)
    (place.work / "b" / "done.json").write_text(json.dumps({"fingerprint": "x", "digest": "y", "seconds": 1, "results": {}}))
    assert place.fit() == ["a", "b", "export"] and place.aside() == ["b-1"]


def test_a_work_folder_in_the_data_is_no_data(tmp_path):
    place = Place(tmp_path)
    place.work = place.data / "run"
    place.fit()
    (place.work / "b" / "looks like a clip.wav").write_bytes((place.data / "0.wav").read_bytes())
    assert place.fit() == []
    place.work = place.data  # One folder for both.
    place.fit()
    assert place.fit() == []
    assert place.fit(b={"text": "y"}) == ["b", "export"] and place.fit(b={"text": "y"}) == []


# ---------------------------------------------------------------------------------------------------------------------- One step, two runs


def test_one_step_wants_the_steps_before_it(place):
    with pytest.raises(UserError, match="step 'd': choose one of prepare, a, b, export, c"):
        run_step("d", place.data, config=place.config(), workdir=place.work)
    with pytest.raises(UserError, match="export needs the output of a, .* run `musiclm train a`"):
        run_step("export", place.data, config=place.config(), workdir=place.work)
    assert place.log == []
    # But for the step that reads the data, which decides nothing.
    assert run_step("a", place.data, config=place.config(), workdir=place.work) == {"length": 0} and place.log == ["a"]
    with pytest.raises(UserError, match=r"b needs the output of a, .* \(redo: text: 'y', was 'x'\): run `musiclm train a`"):
        run_step("b", place.data, config=place.config(a={"text": "y"}), workdir=place.work)
    with pytest.raises(UserError, match="is not a folder"):
        run_step("a", place.data / "nowhere", config=place.config(), workdir=place.work)


def _hold(work, ready, done):
    """Another process at work on step a."""
    import fcntl

    path = work / ".locks" / "a"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(str(os.getpid()))
        file.flush()
        ready.set()
        done.wait(60)


@contextlib.contextmanager
def busy(place):
    """Another process is at work on step a. Yields its number."""
    context = multiprocessing.get_context("spawn")
    ready, done = context.Event(), context.Event()
    other = context.Process(target=_hold, args=(place.work, ready, done))
    other.start()
    assert ready.wait(60)
    yield other.pid
    done.set()
    other.join()


def test_nothing_is_moved_while_another_run_is_at_work(place):
    place.fit()
    with busy(place) as other:
        for call in (fit, functools.partial(run_step, "b")):
            with pytest.raises(UserError, match=rf"work: process {other} is running a there: wait for it"):
                call(place.data, config=place.config(b={"text": "y"}), workdir=place.work)
        assert place.aside() == []
    assert place.fit(b={"text": "y"}) == ["b", "export"]


def test_two_runs_are_kept_apart(place):
    with busy(place) as other, pytest.raises(UserError, match=rf"work/a: process {other} is running this step"):
        fit(place.data, config=place.config(), workdir=place.work)
    assert place.log == []
    assert place.fit() == ["a", "b", "export"]  # The lock went with the process.


def test_steps_that_need_the_same_one_run_side_by_side(place):
    run_step("a", place.data, config=place.config(), workdir=place.work)
    with busy(place):  # Another process has just begun, and looks whether a is done.
        run_step("b", place.data, config=place.config(), workdir=place.work)
    assert place.log == ["a", "b"]


def test_parts_that_do_not_go_together_are_refused():
    with pytest.raises(UserError, match="two parts are named 'b'"):
        FitConfig(parts=(*tiny_parts([]), tiny_parts([])[2]))
    with pytest.raises(UserError, match="a needs prepare, which no earlier part makes"):
        FitConfig(parts=tiny_parts([])[1:])
    with pytest.raises(UserError, match="encode_context_sec=5, encode_sec=5: the context must be shorter"):
        FitConfig(parts=tiny_parts([]), encode_sec=5, encode_context_sec=5)
