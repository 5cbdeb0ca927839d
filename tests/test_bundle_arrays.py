"""Files of arrays: safetensors as the library reads them, crafted ones, and shapes that a config does not mean."""

import json
import os
import struct

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from test_bundle import assert_same

from musiclm_jax import bundle
from musiclm_jax.errors import UserError

ARRAYS = {
    "whole": {"b": np.arange(3, dtype=np.int64), "c": np.arange(5, dtype=np.int8), "d": np.arange(7, dtype=np.uint8)},
    "float": {
        "half": np.float16([0.1, 2]),
        "one": np.float32(2.5),
        "none": np.zeros((0, 5), np.float32),
        "turned": np.arange(6, dtype=np.float32).reshape(2, 3).T,
    },
    "flags": np.array([True, False]),
}


def test_the_library_reads_what_we_write(tmp_path):
    bundle.write_arrays(tmp_path / "a", ARRAYS, metadata={"x": "π", "w": "\n"})
    for name, array in safetensors.numpy.load_file(tmp_path / "a").items():
        expected = bundle.flatten(ARRAYS)[name]
        assert (array.dtype, array.shape) == (expected.dtype, expected.shape)
        np.testing.assert_array_equal(array, expected)
    with safetensors.safe_open(tmp_path / "a", framework="numpy") as file:
        assert file.metadata() == {"x": "π", "w": "\n"}
    blob = (tmp_path / "a").read_bytes()
    for entry in json.loads(blob[8 : 8 + int.from_bytes(blob[:8], "little")]).values():
        if "dtype" in entry:  # Aligned.
            assert entry["data_offsets"][0] % np.dtype(bundle._STORED_DTYPES[entry["dtype"]]).itemsize == 0
    with pytest.raises(ValueError, match="complex64"):
        bundle.write_arrays(tmp_path / "b", {"a": np.complex64(1)})
    assert os.listdir(tmp_path) == ["a"]


def test_the_same_content_is_the_same_file(tmp_path):
    backwards = {name: dict(reversed(value.items())) if isinstance(value, dict) else value for name, value in reversed(ARRAYS.items())}
    metadata = {name: name for name in "hgfedcba"}
    bundle.write_arrays(tmp_path / "a", ARRAYS, metadata=metadata)
    bundle.write_arrays(tmp_path / "b", backwards, metadata=dict(reversed(metadata.items())))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_arrays_come_back_with_floats_as_float32(tmp_path):
    bundle.write_arrays(tmp_path / "a", ARRAYS, metadata={"x": "y"})
    variables, metadata = bundle.read_arrays(tmp_path / "a")
    assert_same(variables, ARRAYS | {"float": {name: value.astype(np.float32) for name, value in ARRAYS["float"].items()}})
    assert metadata == {"x": "y"}
    with pytest.raises(UserError, match="none cannot be read, no such file"):
        bundle.read_arrays(tmp_path / "none")


def entry(dtype, shape, begin, end):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    ("header", "data"),
    [
        ([], b""),
        ({"a": []}, b""),
        ({"a": entry("F32", [2], 0, 4)}, bytes(4)),
        ({"a": entry("F32", [2**63, 2], 0, 4)}, bytes(4)),
        ({"a": entry("F32", [1], 0, 4)}, bytes(3)),
        ({"a": entry("BF16", [2], 0, 4)}, bytes(4)),
        ({"a": entry("F8_E4M3", [4], 0, 4)}, bytes(4)),
        ({"a": entry("C64", [1], 0, 8)}, bytes(8)),
        ({"a": entry("F64", [1], 0, 8)}, bytes(8)),
        ({"a": entry("F32", [1], 0, 4)}, struct.pack("<f", np.nan)),
        ({"a": entry("F16", [1], 0, 2)}, struct.pack("<e", np.inf)),
        ({"a": entry("F32", [1], 0, 4), "a/b": entry("F32", [1], 4, 8)}, bytes(8)),
        ({"a/b": entry("F32", [1], 0, 4), "a": entry("F32", [1], 4, 8)}, bytes(8)),
        ({"a\n/b/c": entry("F32", [1], 0, 4), "a\n/b": entry("F32", [1], 4, 8)}, bytes(8)),
        ({"a/" * 100_000 + "a": entry("F32", [1], 0, 4)}, bytes(4)),
        ({"__metadata__": {"vocabulary": 3}}, b""),
    ],
)
def test_crafted_files_of_arrays_are_refused_in_one_line(tmp_path, header, data):
    text = json.dumps(header).encode()
    (tmp_path / "a").write_bytes(len(text).to_bytes(8, "little") + text + data)
    with pytest.raises(UserError) as error:
        bundle.read_arrays(tmp_path / "a")
    assert str(error.value).startswith(str(tmp_path / "a")) and len(str(error.value).splitlines()) == 1 and len(str(error.value)) < 500


def test_weights_must_have_the_shapes_of_their_config():
    expected = jax.eval_shape(lambda: {"a": {"b": jnp.zeros((5, 3)), "c": jnp.zeros(7, jnp.bfloat16)}, "n": jnp.zeros(2, jnp.int32)})
    right = {"a": {"b": np.zeros((5, 3), np.float32), "c": np.zeros(7, np.float32)}, "n": np.zeros(2, np.int64)}
    bundle.check_shapes(right, expected, where="b/x.safetensors")

    def says(**changes):
        with pytest.raises(UserError) as error:
            bundle.check_shapes(right | changes, expected, where="b/x.safetensors")
        assert str(error.value).endswith("; take config and weights from one export")
        return str(error.value).removesuffix("; take config and weights from one export")

    a = right["a"]
    assert says(a=a | {"b": np.zeros((3, 5), np.float32)}) == "b/x.safetensors: has 'a/b' as float32[3, 5] where the config requires float32[5, 3]"
    assert says(a=a | {"b": np.zeros((5, 3), np.int32)}) == "b/x.safetensors: has 'a/b' as int32[5, 3] where the config requires float32[5, 3]"
    assert says(n=np.zeros(2, bool)) == "b/x.safetensors: has 'n' as bool[2] where the config requires int32[2]"
    assert says(a=a | {"d": np.zeros(2)}) == "b/x.safetensors: has 'a/d' float64[2], which the config does not have"
    assert says(a={"c": a["c"]}) == "b/x.safetensors: lacks 'a/b' float32[5, 3], which the config requires"
    assert says(a={}) == "b/x.safetensors: lacks 'a/b' float32[5, 3], which the config requires (and 1 more)"
    assert says(a=a["b"]).startswith("b/x.safetensors: has 'a' float32[5, 3], which the config does not have (and 2 more)")
