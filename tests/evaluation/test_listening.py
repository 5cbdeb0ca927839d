"""Listening tests: the page, what it saves, and the score of its results."""

import json
import re
import shutil
import subprocess
import urllib.parse

import pytest
import scipy.stats
from folders import tone, write_clips

from musiclm_jax.errors import UserError
from musiclm_jax.evaluation.listening import SCALE, format_score, score, write_page

NAMES = [f"{i} é?.wav" for i in range(4)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("systems")
    waves = {name: tone(300, seconds=0.1) for name in NAMES}
    return [write_clips(root / "ours", waves, {name: f"</script> a tone, {name}" for name in NAMES}), write_clips(root / "theirs", waves)]


def data_of(page):
    return json.loads(re.search(r"const test = (.*);", page.read_text(encoding="utf-8"))[1])


def test_the_page_has_each_pair_once_in_random_order(folders, tmp_path):
    page = tmp_path / "sub" / "page.html"
    assert write_page(*folders, page) == (4, [])
    test = data_of(page)
    assert test["systems"] == ["ours", "theirs"] and sorted(trial["clip"] for trial in test["trials"]) == NAMES
    for trial in test["trials"]:
        assert {trial["first"], trial["second"]} == {"ours", "theirs"} and trial["text"] == f"</script> a tone, {trial['clip']}"
        for system, file in zip((trial["first"], trial["second"]), trial["files"]):
            path = (page.parent / urllib.parse.unquote(file)).resolve()
            assert path.is_file() and (path.parent.name, path.name) == (system, trial["clip"])
    assert page.read_text().count("</script>") == 1  # A caption does not end the script.
    orders = set()
    for seed in range(8):
        write_page(*folders, page, seed=seed, num_pairs=2)
        orders.add(tuple((trial["clip"], trial["first"]) for trial in data_of(page)["trials"]))
    assert len(orders) > 3 and all(len(order) == 2 for order in orders) and {first for order in orders for _, first in order} == {"ours", "theirs"}


def test_clips_that_cannot_be_heard_are_left_out_and_lengths_are_said(folders, tmp_path):
    broken = write_clips(tmp_path / "broken", {name: tone(300, seconds=0.1 if name != NAMES[1] else 0.2) for name in NAMES})
    (broken / NAMES[0]).write_bytes(b"no audio")
    page = tmp_path / "page.html"
    count, notes = write_page(folders[0], broken, page)
    assert count == 3 and NAMES[0] not in {trial["clip"] for trial in data_of(page)["trials"]}
    assert "left out, since they cannot be used: 1 clip," in notes[0] and "1 of 3 pairs have clips of different lengths" in notes[1]


# As much of a browser as the page uses. Presses the buttons that are named, and prints what is saved.
BROWSER = """
const elements = {};
const element = () => ({ style: {}, listeners: {}, pause() {}, addEventListener(kind, fn) { this.listeners[kind] = fn; } });
const buttons = %s.map((value) => ({ value, style: {}, tagName: "BUTTON" }));
const audio = [element(), element()];
globalThis.document = {
  getElementById: (id) => (elements[id] ??= Object.assign(element(), { children: buttons })),
  querySelectorAll: () => audio,
  createElement: () => ({ click() { console.log(saved); } }),
};
globalThis.localStorage = { getItem: () => null, setItem() { throw Error("none"); } };
let saved;
globalThis.Blob = function (parts) { saved = parts[0]; };
globalThis.URL = { createObjectURL: () => "" };
%s
for (const step of %s)
  if (typeof step === "string") elements[step].listeners.click();
  else elements.scale.listeners.click({ target: buttons.find((button) => Number(button.value) === step) });
"""


@pytest.mark.skipif(not shutil.which("node"), reason="needs node")
def test_what_a_rater_presses_is_what_is_saved(folders, tmp_path):
    page = tmp_path / "page.html"
    write_page(*folders, page)
    script = re.search(r"<script>(.*)</script>", page.read_text(encoding="utf-8"), re.DOTALL)[1]
    program = BROWSER % (json.dumps(list(map(str, SCALE))), script, json.dumps([2, -1, "back", -2, 0, "save"]))
    saved = subprocess.run(["node", "-e", program], capture_output=True, text=True)
    assert not saved.stderr
    results, trials = json.loads(saved.stdout), data_of(page)["trials"]
    assert [answer["rating"] for answer in results["answers"]] == [2, -2, 0]
    assert [(answer["clip"], answer["first"]) for answer in results["answers"]] == [(trial["clip"], trial["first"]) for trial in trials[:3]]
    (tmp_path / "answers.json").write_text(saved.stdout)
    assert score([tmp_path / "answers.json"])["comparisons"] == {"ours": 3, "theirs": 3}


def write_answers(path, *answers):
    path.write_text(json.dumps({"format": 1, "answers": [dict(zip(("first", "second", "rating"), answer)) for answer in answers]}))
    return path


def test_wins_and_tests(tmp_path):
    one = write_answers(tmp_path / "1.json", *[("a", "b", 2)] * 4, *[("b", "a", 1)] * 2, ("a", "b", 0), ("b", "c", -1))
    two = write_answers(tmp_path / "2.json", *[("b", "a", -1)] * 3, ("c", "a", 0))
    report = score([one, two])
    with pytest.raises(UserError, match="are the same results"):
        score([one, two, one])
    assert report["wins"] == {"a": 2, "b": 8, "c": 0} and report["comparisons"] == {"a": 11, "b": 11, "c": 2}
    ab, ac, bc = report["pairs"]
    assert ab["systems"] == ("a", "b") and ab["wins"] == [2, 7] and ab["ties"] == 1
    p = scipy.stats.wilcoxon([2] * 4 + [-1] * 2 + [0] + [1] * 3, zero_method="pratt").pvalue
    assert ab["p"] == pytest.approx(p) and ab["p_corrected"] == pytest.approx(min(1, 3 * p))
    assert ac["p"] == 1 and bc["p_corrected"] == 1 and bc["wins"] == [1, 0]
    assert "a and b  10       2 : 7  1" in format_score(report)


def test_mistakes(folders, tmp_path):
    with pytest.raises(UserError, match="both folders are called 'ours'"):
        write_page(folders[0], folders[0], tmp_path / "page.html")
    with pytest.raises(UserError, match="there are no results"):
        score([])
    broken = tmp_path / "broken.json"
    for text in (
        "[]",
        '{"format": 2}',
        '{"format": 1, "answers": []}',
        '{"format": 1, "answers": [{"first": "a", "second": "b", "rating": 3}]}',
        '{"format": 1}',
    ):
        broken.write_text(text)
        with pytest.raises(UserError, match="broken.json: has no results of a listening test"):
            score([broken])
