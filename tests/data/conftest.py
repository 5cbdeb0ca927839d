"""The same clips as a folder, and as data sets of TFDS in both formats."""

import pytest
from told_clips import RATE, write_told_clips

from musiclm_jax.data.clips import ClipStore, prepare
from musiclm_jax.data.folder import read_folder
from musiclm_jax.data.records import read_record_folder


@pytest.fixture(scope="session")
def data_of(tmp_path_factory):
    """data_of("folder"), data_of("array_record") or data_of("tfrecord") is the folder of the data. It must not be changed."""
    home = tmp_path_factory.mktemp("data")
    write_told_clips(home / "folder")

    def data_of(form: str):
        if form == "folder":
            return home / "folder"
        if not (home / form).exists():
            pytest.importorskip("tensorflow", reason="TFDS builds data sets with TensorFlow")
            tfds = pytest.importorskip("tensorflow_datasets")
            from musiclm_jax.data import tfds_builders  # noqa: F401

            tfds.disable_progress_bar()
            tfds.builder("captioned_folder", folder=str(home / "folder"), data_dir=home / form, file_format=form).download_and_prepare()
        return home / form / "captioned_folder" / "1.0.0"

    return data_of


@pytest.fixture(scope="session")
def store_of(data_of, tmp_path_factory):
    """store_of(form) is the store of `data_of(form)`."""
    stores: dict[str, ClipStore] = {}

    def store_of(form: str) -> ClipStore:
        if form not in stores:
            data, work = data_of(form), tmp_path_factory.mktemp(form)
            folder = read_folder(data) if form == "folder" else read_record_folder(data, cache=work / "records")
            stores[form] = prepare(folder, work / "prepare", sample_rate_hz=RATE)
        return stores[form]

    return store_of
