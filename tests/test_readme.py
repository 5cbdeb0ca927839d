"""The docs say only what is there: commands parse, gin values are read, files and links exist, code compiles, examples of data are read."""

import ast
import importlib.util
import json
import re
import shlex
import subprocess
from pathlib import Path

import click
import pytest
from scripts import ROOT, load_script
from test_imports import LEVELS

from musiclm_jax.cli.gin_config import gin_folder, load_config
from musiclm_jax.cli.main import cli
from musiclm_jax.data.metadata import read_lines
from musiclm_jax.errors import UserError
from musiclm_jax.parts import workdir

CARD = ROOT / "musiclm_jax" / "bundles" / "demo" / "README.md"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md")), CARD]
GIN = [*sorted((ROOT / "gin_configs").rglob("*.gin")), *sorted((ROOT / "docs").rglob("*.gin"))]
TEXT = {path: path.read_text(encoding="utf-8") for path in (*PAGES, *GIN)}
README = TEXT[ROOT / "README.md"]


def name(value):
    return str(value.relative_to(ROOT)) if isinstance(value, Path) else None


def blocks(path, language):
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT[path], re.MULTILINE | re.DOTALL)


def code(path):
    """What stands in single backticks, outside of blocks."""
    return re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```$", "", TEXT[path], flags=re.MULTILINE | re.DOTALL))


def block_after(marker):
    return re.search(rf"^<!-- {marker} -->\n```sh\n(.*?)\n```$", README, re.MULTILINE | re.DOTALL).group(1)


def test_ci_runs_the_readmes_test_command():
    printed = subprocess.run([ROOT / ".ci" / "run", "--print"], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == block_after("test")
    assert "\n" not in block_after("test") and "pytest" in block_after("test")


def test_both_commands_start_in_a_fresh_environment():
    for marker in ("generate", "test"):
        assert block_after(marker).startswith("python3 -m venv .venv && . .venv/bin/activate && pip install ")


def test_the_readme_is_short():
    assert len(README.splitlines()) < 150


# ---------------------------------------------------------------------------------------------------------------------- Commands


def commands():
    """(every `musiclm ...` of the docs and of the comments in gin files, whether it is a whole call): those in text may leave arguments out."""
    found = {}
    for path in PAGES:
        found |= {text: False for text in code(path)}
        found |= {part: True for block in blocks(path, "sh") for line in block.splitlines() for part in re.split(r"&&|&$", line)}
    for path in GIN:
        found |= {line.removeprefix("#"): True for line in TEXT[path].splitlines() if re.match(r"#\s+musiclm ", line)}
    return sorted((text.strip(), whole) for text, whole in found.items() if text.strip().startswith("musiclm "))


@pytest.mark.parametrize(("line", "whole"), commands())
def test_commands_parse(line, whole, request):
    if "://" in line:
        request.getfixturevalue("bucket")  # It needs no client of an object store.
    command, words = cli, shlex.split(line)[1:]
    context = click.Context(cli, info_name="musiclm")
    while isinstance(command, click.Group) and words:
        name, command, words = command.resolve_command(context, words)
    if "--help" in words or not words and not whole:
        return
    try:
        params = command.make_context(name, words, parent=context).params
    except click.MissingParameter:
        assert not whole
        return
    # gin values must be known, and files there.
    if "gin_files" in params:
        bindings = [binding.removeprefix("--gin.") for binding in (str(params.get("data")), *params["bindings"]) if binding.startswith("--gin.")]
        files = [str(ROOT / file) if (ROOT / file).is_file() else file for file in params["gin_files"]]
        if not {"mine.gin", "FILE"} & set(files) and params["size"] != "NAME" and "NAME=VALUE" not in bindings:
            load_config(params["size"], files, bindings)


def test_there_are_commands():
    assert len(commands()) > 30 and ("musiclm evaluate adherence clips", False) in commands()


def values():
    """Single gin values that are named in text."""
    return sorted({text for path in PAGES for text in code(path) if text.startswith("--gin.") and "NAME" not in text})


@pytest.mark.parametrize("text", values())
def test_gin_values_are_read(text):
    (word,) = shlex.split(text)
    load_config("demo", (), [word.removeprefix("--gin.")])


def renamed():
    return re.findall(r"^\| `([^`]+)` \| (.+) \|$", re.search(r"\| gin, before .+?\n\n", TEXT[ROOT / "docs" / "log.md"], re.DOTALL)[0], re.MULTILINE)


@pytest.mark.parametrize(("old", "new"), renamed())
def test_old_gin_names_lead_to_the_new_ones_of_the_table(old, new):
    with pytest.raises(UserError) as error:
        load_config("demo", (), [f"{old}=1"])
    assert str(error.value) == f"{old} is {new} now"


# ---------------------------------------------------------------------------------------------------------------------- Files and links

# Folders of the repository: what begins with one of them and a slash is a path.
FOLDERS = ("docs", "gin_configs", "musiclm_jax", "tests", "tools", "checks", "benchmarks", "colab", "tpu_scripts", r"\.ci")
# In the docs themselves before they had pages of their own; only the table of old names has them.
GONE = ("docs/demo.md", "docs/training/README.md", "docs/training/melody.md")


@pytest.mark.parametrize("path", TEXT, ids=name)
def test_files_that_are_named_exist(path):
    for text in code(path) if path in PAGES else [line for line in TEXT[path].splitlines() if line.startswith("#")]:
        for file in re.findall(rf"(?<![\w./-])(?:{'|'.join(FOLDERS)})/[\w./*-]*", text):
            if not (file in GONE and path.name == "log.md"):
                assert any(ROOT.glob(file.rstrip("./:"))), f"{name(path)}: {file}"
        for file in re.findall(r"(?<![\w/])(?:runs|models)/\w+\.gin", text):
            assert (gin_folder() / file).is_file() or "soundstream_base" in file and path.name == "log.md", f"{name(path)}: {file}"


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_scripts_that_are_called_exist(path):
    for text in (*code(path), *(line for block in blocks(path, "sh") for line in block.splitlines())):
        for script in re.findall(r"python (\S+\.py)", text):
            assert (ROOT / script).is_file(), f"{name(path)}: {script}"


def anchors(path):
    """The anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```$", "", TEXT[path], flags=re.MULTILINE | re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_links_resolve(path):
    for target in re.findall(r"\]\((?!https?://)([^)]+)\)", TEXT[path]):
        file, _, anchor = target.partition("#")
        linked = (path.parent / file).resolve() if file else path
        assert linked.exists(), f"{name(path)}: {target}"
        assert not anchor or anchor in anchors(linked), f"{name(path)}: {target}"


def test_every_page_is_linked_from_the_readme():
    for path in (ROOT / "docs").glob("*.md"):
        assert f"(docs/{path.name})" in README, path.name


@pytest.mark.parametrize("path", TEXT, ids=name)
def test_no_machine_paths(path):
    assert not re.search(r"/(home|root|tmp|work|opt)/", TEXT[path])


# ---------------------------------------------------------------------------------------------------------------------- Code and examples


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_python_compiles(path):
    for block in blocks(path, "python"):
        for node in ast.walk(compile(block, name(path), "exec", ast.PyCF_ONLY_AST)):
            if isinstance(node, ast.ImportFrom):
                module = importlib.import_module(node.module)
                assert all(hasattr(module, alias.name) or importlib.util.find_spec(f"{node.module}.{alias.name}") for alias in node.names)


@pytest.mark.parametrize("path", [ROOT / "README.md", ROOT / "docs" / "data.md"], ids=name)
def test_examples_of_metadata_are_read_without_a_warning(path, tmp_path):
    found = [*blocks(path, "jsonl"), *blocks(path, "json")]
    assert found
    for block in found:
        (tmp_path / "metadata.jsonl").write_text(block, encoding="utf-8")
        lines, warnings = read_lines(tmp_path / "metadata.jsonl")
        assert len(lines) == len(block.splitlines()) and not warnings
        assert all(json.loads(text)["file_name"] == line.file_name for text, line in zip(block.splitlines(), lines, strict=True))


def test_the_fields_of_metadata_are_those_of_the_docs():
    from musiclm_jax.data import metadata

    table = re.search(r"\| field \|.*?\n\n", TEXT[ROOT / "docs" / "data.md"], re.DOTALL)[0]
    fields = [field for row in re.findall(r"^\| (`.+?`) \|", table, re.MULTILINE) for field in re.findall(r"`(\w+)`", row)]
    assert sorted(fields) == sorted(name for names in metadata._COLUMNS.values() for name in names)


def test_the_rooms_of_contributing_are_the_levels_of_imports():
    rows = re.findall(r"^\| (\d) \| (.+) \|$", TEXT[ROOT / "CONTRIBUTING.md"], re.MULTILINE)
    assert [int(level) for level, _ in rows] == list(range(len(LEVELS)))
    for rooms, (_, row) in zip(LEVELS, rows, strict=True):
        assert set(rooms.split()) == set(re.findall(r"`(\w+)`", row))


def test_the_steps_of_training_are_those_of_fit():
    config = load_config("demo")
    table = re.search(r"\| step \| what it does .*?\n\n", TEXT[ROOT / "docs" / "training.md"], re.DOTALL)[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:] if line]
    assert [row[0].strip("`") for row in rows] == list(config.steps)
    words = {"waves": "names and contents of the audio"}
    for name, _, needs, reads in rows:
        step = config.steps[name.strip("`")]
        assert reads == ", ".join(words.get(each, each) for each in step.reads), name
        if step.name != "export":
            assert {*re.findall(r"`(\w+)`", needs)} == {*step.needs} - {"prepare"}, name


def test_the_words_of_plans_are_those_of_the_docs():
    table = re.search(r"\| word \|.*?\n\n", TEXT[ROOT / "docs" / "training.md"], re.DOTALL)[0]
    actions = (workdir.DONE, workdir.NEW, workdir.CONTINUE, workdir.EXTEND, workdir.REPAIR, workdir.REDO, workdir.RESTORE)
    assert re.findall(r"^\| `(\w+)`", table, re.MULTILINE) == list(actions)


def test_configuration_is_what_its_script_writes():
    script = ROOT / "docs" / "configuration.py"
    assert load_script("docs/configuration.py").page() == script.with_suffix(".md").read_text(encoding="utf-8"), "run `python docs/configuration.py`"


def test_each_field_of_configuration_has_a_type_and_a_comment_stands_where_there_is_one():
    page = TEXT[ROOT / "docs" / "configuration.md"]
    assert "- `temperature: float = 1.0` Divides the logits. 0: always the most likely code." in page
    assert "### StageConfig" in page and "- `dim: int = 1024`" in page and "### ASTConfig" in page  # Of a base class, and of a union.
    assert "| `SEMANTIC_STEPS` | `1_000_000` | `11_000` | `4` |" in page
