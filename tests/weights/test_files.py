"""Files of weights: torch's formats without torch, safetensors, and files that mean harm."""

import argparse
import json
import pickle
import zipfile
from collections import Counter, defaultdict
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from jaxseg.weights.files import WeightsError, read_state_dict, write_state_dict

FORMATS = ("zip", "legacy", "nested_zip")
DTYPES = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "bool")


def plain(value) -> bytes:
    """The pickle of a plain value, without protocol and stop."""
    return pickle.dumps(value, 2)[2:-1]


def storage_id(size, kind="FloatStorage", key="0", view=b"") -> bytes:
    name = plain("storage") + f"ctorch\n{kind}\n".encode()
    return b"(" + name + plain(key) + plain("cpu") + plain(size) + view + b"tQ"


def tensor(shape, strides, offset=0, storage=None) -> bytes:
    """The pickle of a tensor, by default in storage "0" of 6 float32."""
    rebuild = b"ctorch._utils\n_rebuild_tensor_v2\n("
    layout = plain(offset) + plain(shape) + plain(strides) + plain(False) + plain({})
    return rebuild + (storage_id(6) if storage is None else storage) + layout + b"tR"


def state(*items) -> bytes:
    """The pickle of a dict of pickled values."""
    return b"}(" + b"".join(plain(name) + value for name, value in items) + b"u."


NUMBERS = np.arange(6, dtype="<f4").tobytes()


def zip_file(folder, pickled: bytes, data=NUMBERS, compression=zipfile.ZIP_STORED, **entries):
    path = folder / "file.pth"
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("x/data.pkl", b"\x80\x02" + pickled)
        for name, content in {"data/0": data, **entries}.items():
            archive.writestr(f"x/{name}", content)
    return path


def legacy_file(folder, pickled: bytes, data: bytes, keys=("0",)):
    path = folder / "file.pth"
    head = [pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001, {})]
    path.write_bytes(b"".join([*head, b"\x80\x02" + pickled, pickle.dumps([*keys], 2), data]))
    return path


# What is right.


@pytest.mark.parametrize("name", FORMATS)
def test_files_of_torch(fixtures, name):
    loaded = read_state_dict(fixtures / f"torchvision/pth/{name}.pth")
    with np.load(fixtures / "torchvision/pth/expected.npz") as expected:
        assert list(loaded) == list(expected)
        for key, array in expected.items():
            assert (loaded[key].dtype, loaded[key].shape) == (array.dtype, array.shape), key
            np.testing.assert_array_equal(loaded[key], array, err_msg=key)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_what_is_written_is_read(tmp_path, suffix):
    base = np.arange(24).reshape(2, 3, 4)
    arrays = {name: base.astype(name) for name in DTYPES} | {
        "transposed": base.astype(np.float32).T,
        "big-endian": base.astype(">f4"),
        "scalar": np.array(7, np.int64),
        "empty": np.zeros((0, 3), np.float32),
        "größe": np.float32([np.inf, -0.0, 1e-45]),
    }
    path = tmp_path / f"weights{suffix}"
    write_state_dict(path, arrays)
    loaded = read_state_dict(path)
    assert set(loaded) == set(arrays)
    for name, array in arrays.items():
        assert loaded[name].dtype == array.dtype.newbyteorder("="), name
        assert loaded[name].shape == array.shape, name
        np.testing.assert_array_equal(loaded[name], array, err_msg=name)
    assert [*tmp_path.iterdir()] == [path]


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_bfloat16_is_written_as_float32(tmp_path, suffix):
    path = tmp_path / f"weights{suffix}"
    write_state_dict(path, {"x": np.array([1.5, -2], ml_dtypes.bfloat16)})
    assert read_state_dict(path)["x"].dtype == np.float32
    assert read_state_dict(path)["x"].tolist() == [1.5, -2]


def test_bfloat16_of_safetensors(tmp_path):
    header = json.dumps({"x": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]}}).encode()
    data = np.array([1.5, -2], ml_dtypes.bfloat16).tobytes()
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + data)
    assert read_state_dict(path)["x"].tolist() == [1.5, -2]


def test_prefix_of_data_parallel(tmp_path):
    path, one = tmp_path / "x.pth", np.ones(1, np.float32)
    write_state_dict(path, {"module.a": one, "module.module.b": one})
    assert list(read_state_dict(path)) == ["a", "module.b"]
    write_state_dict(path, {"module.a": one, "b": one})
    assert list(read_state_dict(path)) == ["module.a", "b"]


@pytest.mark.parametrize("name", ["state_dict", "model"])
def test_nested_checkpoints(tmp_path, name):
    nested = state(("a", tensor((2, 3), (3, 1))))[:-1]
    path = zip_file(
        tmp_path, state(("epoch", plain(3)), (name, nested), ("args", plain({"a": 1.5})))
    )
    loaded = read_state_dict(path)
    assert list(loaded) == ["a"]
    assert loaded["a"].tolist() == [[0, 1, 2], [3, 4, 5]]


def test_what_training_scripts_put_beside_the_weights_is_left_unread(tmp_path):
    beside = {
        "args": argparse.Namespace(lr=0.1, data=Path("/data")),
        "lr_scheduler": {"milestones": Counter({8: 1}), "best": np.float64(0.5)},
        "seen": defaultdict(None, {"a": 1}),
        "kinds": {1, 2},
        "dtype": np.dtype("float32"),
    }
    others = [(name, plain(value)) for name, value in beside.items()]
    path = zip_file(tmp_path, state(*others, ("model", state(("a", tensor((6,), (1,))))[:-1])))
    assert read_state_dict(path)["a"].tolist() == [0, 1, 2, 3, 4, 5]
    path = zip_file(tmp_path, state(("a", tensor((6,), (1,))), others[0]))
    with pytest.raises(WeightsError, match=r"args is a argparse\.Namespace, expected names and"):
        read_state_dict(path)


def test_a_file_that_is_cut_off(tmp_path):
    path = zip_file(tmp_path, state(("a", tensor((6,), (1,)))))
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(WeightsError, match="cut off: the zip archive"):
        read_state_dict(path)


@pytest.mark.parametrize(("order", "dtype"), [(b"little", "<f4"), (b"big", ">f4")])
def test_byte_order(tmp_path, order, dtype):
    data = np.arange(6, dtype=dtype).tobytes()
    path = zip_file(tmp_path, state(("a", tensor((6,), (1,)))), data, byteorder=order)
    assert read_state_dict(path)["a"].tolist() == [0, 1, 2, 3, 4, 5]
    assert read_state_dict(path)["a"].dtype == np.float32


def test_pickles_of_python_2_and_of_newer_protocols(tmp_path):
    """Its OrderedDict is made of a list of pairs, its strings are bytes; the first releases of
    torch rebuilt tensors by another name. Protocol 4 has frames, a memo without numbers."""
    old = tensor((2,), (1,)).replace(b"_v2", b"").replace(plain("cpu"), b"U\x03cpu")
    pickled = b"ccollections\nOrderedDict\n(](](U\x01a" + old + b"eetR."
    assert read_state_dict(zip_file(tmp_path, pickled))["a"].tolist() == [0, 1]
    new = b"\x80\x04}\x94\x8c\x01a\x94\x8c\x0ctorch._utils\x94\x8c\x12_rebuild_tensor_v2\x94\x93("
    pickled = new + tensor((2,), (1,), 4).split(b"\n(", 1)[1] + b"s."
    assert read_state_dict(zip_file(tmp_path, pickled))["a"].tolist() == [4, 5]


def test_reading_needs_no_memory_for_what_is_only_declared(tmp_path):
    memo = b"r\xff\xff\xff\xff"  # the stack's top into the memo, under 4294967295
    pickled = state(("a", tensor((2,), (1,)) + memo))
    assert read_state_dict(zip_file(tmp_path, pickled))["a"].tolist() == [0, 1]


# What is refused.

SYSTEM = b"cposix\nsystem\n(" + plain("touch {}") + b"tR"
HOSTILE = {
    "system": (SYSTEM + b".", "asks for posix.system"),
    "system among tensors": (
        state(("a", tensor((6,), (1,))), ("b", SYSTEM)),
        "posix.system; a state dict needs only collections.OrderedDict",
    ),
    "eval": (b"cbuiltins\neval\n(" + plain("1") + b"tR.", "builtins.eval"),
    "stack global": (plain("os") + plain("system") + b"\x93.", "asks for os.system"),
    "pickle in a pickle": (b"ctorch.storage\n_load_from_bytes\n.", "_load_from_bytes"),
    "module": (b"ctorch.nn.modules.linear\nLinear\n)\x81.", "torch.nn.modules.linear.Linear"),
    "instance": (b"(iposix\nsystem\n.", "operation INST"),
    "object": (b"(ccollections\nOrderedDict\no.", "operation OBJ"),
    "new object": (b"ccollections\nOrderedDict\n)\x81.", "operation NEWOBJ"),
    "extension": (b"\x82\x01.", "operation EXT1"),
    "buffer": (b"\x97.", "operation NEXT_BUFFER"),
    "call of a number": (b"K\x01)R.", "a call that no state dict needs"),
    "call of a storage": (b"ctorch\nFloatStorage\n(K\x7ftR.", "a call that no state dict needs"),
    "rebuild a number": (b"ctorch._utils\n_rebuild_tensor_v2\n(K\x01K\x00))tR.", "a call that"),
    "no dict": (tensor((6,), (1,)) + b".", "holds a _Tensor, expected a dict"),
    "no tensor": (state(("epoch", plain(3))), "epoch is a int, expected names and tensors"),
    "no name": (b"}(K\x01" + tensor((6,), (1,)) + b"u.", "1 is a _Tensor"),
    "no end": (b"}", "damaged"),
    "empty stack": (b"0.", "operation POP"),
    "nothing to call": (b"R.", "damaged"),
    "no mark": (b"}u.", "damaged"),
    "odd items": (b"}(K\x01u.", "damaged"),
    "no such memory": (b"h\x07.", "damaged"),
    "long text": (b"\x8d" + (2**62).to_bytes(8, "little") + b"a.", "damaged"),
    "long number": (b"\x8b\xff\xff\xff\x7f1.", "damaged"),
    "deep key": (b"})" + b"\x85" * 50_000 + b"K\x01s.", "keys that are neither"),
    "deep value": (b"}K\x01)" + b"\x85" * 50_000 + b"s.", "1 is a tuple"),
    "other device of storage": (state(("a", tensor((1,), (1,), 0, b"K\x01Q"))), "unknown form"),
    "unknown storage": (
        state(("a", tensor((6,), (1,), 0, b"(" + plain("storage") + plain("x") * 3 + b"K\x06tQ"))),
        "storage of unknown form",
    ),
    "no such storage": (state(("a", tensor((6,), (1,), 0, storage_id(6, key="1")))), "damaged"),
    "path as storage": (state(("a", tensor((6,), (1,), 0, storage_id(6, key="../x")))), "damaged"),
    "smaller storage": (state(("a", tensor((2,), (1,), 0, storage_id(2)))), "6 numbers, not 2"),
    "larger storage": (state(("a", tensor((6,), (1,), 0, storage_id(2**60)))), "6 numbers, not"),
    "other dtype": (
        state(("a", tensor((6,), (1,), 0, storage_id(6, "DoubleStorage")))),
        "3 numbers, not 6",
    ),
    "too long": (state(("a", tensor((7,), (1,)))), "a: 7 numbers"),
    "offset": (state(("a", tensor((6,), (1,), 1))), "a: 6 numbers, the last 6,"),
    "offset alone": (state(("a", tensor((), (), 6))), "a: 1 numbers, the last 6,"),
    "stride": (state(("a", tensor((2, 3), (4, 1)))), "a: 6 numbers, the last 6,"),
    "repeated": (state(("a", tensor((10**5,) * 3, (0, 0, 0)))), "a: 1000000000000000 numbers"),
    "overlapping": (state(("a", tensor((4, 3), (1, 1)))), "a: 12 numbers"),
    "negative stride": (state(("a", tensor((6,), (-1,), 5))), "not whole numbers"),
    "negative offset": (state(("a", tensor((1,), (1,), -1))), "not whole numbers"),
    "negative shape": (state(("a", tensor((-1, -6), (1, 1)))), "not whole numbers"),
    "shape of words": (state(("a", tensor(("6",), (1,)))), "not whole numbers"),
    "shape and strides": (state(("a", tensor((6,), (1, 1)))), "damaged"),
    "no shape": (state(("a", tensor(None, (1,)))), "damaged"),
    "enormous shape": (state(("a", tensor((10**200,) * 3, (1, 1, 1)))), "a: 1000000000000000"),
    "enormous number": (state(("a", tensor((10**2000,), (1,)))), "operation LONG4"),
    "many axes": (state(("a", tensor((1,) * 100, (1,) * 100))), "damaged"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_pickles(tmp_path, name):
    pickled, message = HOSTILE[name]
    touched = str(tmp_path / "touched")
    if SYSTEM in pickled:
        pickled = pickled.replace(plain("touch {}"), plain(f"touch {touched}"))
    path = zip_file(tmp_path, pickled)
    with pytest.raises(WeightsError, match=message) as caught:
        read_state_dict(path)
    assert str(caught.value).startswith(str(path))
    assert [*tmp_path.iterdir()] == [path]
    with pytest.raises(WeightsError):
        read_state_dict(legacy_file(tmp_path, pickled, (6).to_bytes(8, "little") + NUMBERS))
    assert [*tmp_path.iterdir()] == [path]


def test_a_list_that_is_used_again_and_again_does_not_fill_the_memory(tmp_path):
    """10⁴ dicts of the same 10⁴ items would be gigabytes."""
    pairs = b"](" + b"".join(b"](" + plain(i) + b"Ne" for i in range(10**4)) + b"e"
    call = b"ccollections\nOrderedDict\n(h\x00tR"
    path = zip_file(
        tmp_path, pairs + b"q\x00" + b"}(" + b"".join(plain(i) + call for i in range(10**4)) + b"u."
    )
    with pytest.raises(WeightsError, match="0 is a dict"):
        read_state_dict(path)


def test_hostile_archives(tmp_path):
    good = state(("a", tensor((6,), (1,))))
    bomb = zip_file(tmp_path, good, bytes(10**7), zipfile.ZIP_DEFLATED)
    assert bomb.stat().st_size < 10**5
    with pytest.raises(WeightsError, match="entries are larger than the file"):
        read_state_dict(bomb)
    with pytest.raises(WeightsError, match=r"damaged.*middle"):
        read_state_dict(zip_file(tmp_path, good, byteorder=b"middle"))
    path = zip_file(tmp_path, good)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("y/data.pkl", b"\x80\x02}.")
    with pytest.raises(WeightsError, match="damaged"):
        read_state_dict(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("picture.png", b"")
    with pytest.raises(WeightsError, match="not a file of weights"):
        read_state_dict(path)


def test_hostile_legacy_files(tmp_path):
    six, good = (6).to_bytes(8, "little"), state(("a", tensor((6,), (1,))))
    assert read_state_dict(legacy_file(tmp_path, good, six + NUMBERS))["a"].tolist() == [*range(6)]
    for size in (0, 5, 7, 2**40, 2**63, 2**64 - 1):
        data = size.to_bytes(8, "little") + NUMBERS
        with pytest.raises(WeightsError, match=r"numbers, not 6|damaged"):
            read_state_dict(legacy_file(tmp_path, good, data))
    others = "storages that none of its tensors is in"
    for keys, message in (((), "damaged"), (("1",), others), ((("0",),), others), ((0,), others)):
        with pytest.raises(WeightsError, match=message):
            read_state_dict(legacy_file(tmp_path, good, six + NUMBERS, keys))
    view = storage_id(6, view=plain(("1", 0, 6)))
    with pytest.raises(WeightsError, match="storage of unknown form"):
        read_state_dict(legacy_file(tmp_path, state(("a", tensor((6,), (1,), 0, view))), b""))


@pytest.mark.parametrize(
    "content", [b"", b"PK", b"PK\x03\x04", b"\x80\x02.", b"<html>", b"\x93NUMPY"]
)
@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin", ".safetensors"])
def test_other_files(tmp_path, suffix, content):
    path = tmp_path / f"x{suffix}"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=f"^{path}: "):
        read_state_dict(path)


def test_unknown_names_of_files(tmp_path):
    (tmp_path / "x.h5").touch()
    for path in (tmp_path / "x.h5", tmp_path):
        with pytest.raises(WeightsError, match=r"expected a file with one of the suffixes \.pth, "):
            read_state_dict(path)
    with pytest.raises(WeightsError, match=r"missing\.pth: no such file"):
        read_state_dict(tmp_path / "missing.pth")
    with pytest.raises(WeightsError, match=r"expected one of the suffixes \.pth, \.safetensors"):
        write_state_dict(tmp_path / "x.pt", {})


def damaged_files(data: bytes, kind: str):
    rng = np.random.default_rng(0)
    if kind == "truncated":
        yield from (data[:end] for end in range(0, len(data), len(data) // 100))
        return
    for _ in range(200):
        flipped = bytearray(data)
        flipped[rng.integers(len(data))] ^= 1 << rng.integers(8)
        yield bytes(flipped)


@pytest.mark.parametrize("kind", ["truncated", "flipped"])
@pytest.mark.parametrize("name", ["zip.pth", "legacy.pth", "written.pth", "written.safetensors"])
def test_damaged_files(fixtures, tmp_path, name, kind):
    """The right result or a WeightsError; a legacy file has no checksums, nor has safetensors."""
    with np.load(fixtures / "torchvision/pth/expected.npz") as arrays:
        expected = dict(arrays)
    path = tmp_path / name
    if name.startswith("written"):
        write_state_dict(path, expected)
    else:
        path.write_bytes((fixtures / "torchvision/pth" / name).read_bytes())
    refused = 0
    for data in damaged_files(path.read_bytes(), kind):
        path.write_bytes(data)
        try:
            loaded = read_state_dict(path)
        except WeightsError as error:
            refused += str(path) in str(error)
            continue
        assert kind == "flipped"
        for array in loaded.values():
            array.sum()  # all of it can be read
        if name in ("zip.pth", "written.pth"):
            assert set(loaded) == set(expected)
            for key, array in expected.items():
                np.testing.assert_array_equal(loaded[key], array, err_msg=key)
    assert refused >= (100 if kind == "truncated" else 20)


def test_writing_is_whole_or_nothing(tmp_path, monkeypatch):
    path = tmp_path / "x.pth"
    write_state_dict(path, {"a": np.zeros(1, np.float32)})
    with pytest.raises(WeightsError, match="b is complex64, which state dicts do not hold"):
        write_state_dict(path, {"a": np.ones(1, np.float32), "b": np.ones(1, np.complex64)})

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("pathlib.Path.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_state_dict(path, {"a": np.ones(1, np.float32)})
    assert read_state_dict(path)["a"].tolist() == [0]
    assert [*tmp_path.iterdir()] == [path]


# Beside torch itself.


def test_torch_reads_what_is_written(tmp_path):
    torch = pytest.importorskip("torch")
    base = np.arange(24).reshape(2, 3, 4)
    arrays = {name: base.astype(name) for name in DTYPES}
    arrays |= {"scalar": np.array(3.5, np.float32), "empty": np.zeros((0, 3), np.float32)}
    write_state_dict(tmp_path / "x.pth", arrays)
    for options in ({}, {"mmap": True}):
        loaded = torch.load(tmp_path / "x.pth", weights_only=True, **options)
        assert list(loaded) == list(arrays)
        for name, array in arrays.items():
            assert loaded[name].numpy().dtype == array.dtype
            np.testing.assert_array_equal(loaded[name].numpy(), array)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("protocol", [2, 4])
def test_what_torch_writes_is_read(tmp_path, zipped, protocol):
    torch = pytest.importorskip("torch")
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    network[0].to(memory_format=torch.channels_last)
    expected = network.state_dict() | {"view": torch.arange(12.0).reshape(3, 4).t()[1:, 1:]}
    expected |= {"half": torch.ones(2).bfloat16(), "parameter": torch.nn.Parameter(torch.ones(2))}
    for content in (expected, {"model": expected, "size": torch.Size([2]), "lr": 0.1}):
        options = {"_use_new_zipfile_serialization": zipped, "pickle_protocol": protocol}
        torch.save(content, tmp_path / "x.pth", **options)
        loaded = read_state_dict(tmp_path / "x.pth")
        assert list(loaded) == list(expected)
        for name, value in expected.items():
            value = value.float() if name == "half" else value
            np.testing.assert_array_equal(loaded[name], value.detach().numpy(), err_msg=name)


def test_whole_modules_of_torch_are_refused(tmp_path):
    torch = pytest.importorskip("torch")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "x.pth")
    with pytest.raises(WeightsError, match=r"asks for torch\.nn\.modules\.linear\.Linear"):
        read_state_dict(tmp_path / "x.pth")
