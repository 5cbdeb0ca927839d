"""What tests of all commands share."""

import pytest
from tiny_musiclm import tiny_musiclm


@pytest.fixture(autouse=True)
def no_compilation_cache(monkeypatch):
    monkeypatch.setenv("MUSICLM_CACHE_DIR", "")


@pytest.fixture(scope="module")
def tiny_bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_musiclm().save_pretrained(folder)
    return folder
