"""Files of weights: `.pth` without torch, and `.safetensors`.

What torch.save writes is a pickle that describes tensors, beside the numbers themselves. Here a
small machine reads the description. It knows the few operations and names that state dicts are made
of, and a name is only text to it, so nothing in a file can call anything. A tensor is given only
where its storage holds it.

    storage    a flat run of numbers in the file
    tensor     offset, shape and strides in a storage, counted in numbers
"""

import io
import math
import os
import pickle
import pickletools
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors
import safetensors.numpy

BFLOAT16 = "V2"  # as numpy, which does not know it, calls it
_DTYPES = (  # in numpy, torch, safetensors
    ("f8", "torch.DoubleStorage", "F64"),
    ("f4", "torch.FloatStorage", "F32"),
    ("f2", "torch.HalfStorage", "F16"),
    (BFLOAT16, "torch.BFloat16Storage", "BF16"),
    ("i8", "torch.LongStorage", "I64"),
    ("i4", "torch.IntStorage", "I32"),
    ("i2", "torch.ShortStorage", "I16"),
    ("i1", "torch.CharStorage", "I8"),
    ("u1", "torch.ByteStorage", "U8"),
    ("b1", "torch.BoolStorage", "BOOL"),
)
_TORCH = {torch: dtype for dtype, torch, _ in _DTYPES}
_SAFETENSORS = {name: dtype for dtype, _, name in _DTYPES}
_TENSOR = ("torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor")
_PARAMETER = ("torch._utils._rebuild_parameter", "torch.nn.parameter.Parameter")
_NAMES = ("collections.OrderedDict", "torch.Size", *_TENSOR, *_PARAMETER, *_TORCH)
_BESIDE = (  # what checkpoints hold beside the weights, options and states of schedules: not read
    "argparse.Namespace",
    "collections.Counter",
    "collections.defaultdict",
    "pathlib.Path",
    "pathlib.PosixPath",
    "builtins.set",
    "__builtin__.set",
    "_codecs.encode",
    "numpy.dtype",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "torch.device",
)
_MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of a file from before torch 1.6


class WeightsError(ValueError):
    """A file of weights that cannot be used, or weights that do not fit a network."""


class _Storage(NamedTuple):
    dtype: str
    key: str
    size: int


class _Unread(NamedTuple):
    name: str


class _Tensor(NamedTuple):
    storage: _Storage
    offset: Any
    shape: Any
    strides: Any


def read_state_dict(path: str | Path) -> dict[str, np.ndarray]:
    """{name: array} of a `.safetensors` file, or of a `.pth`, `.pt`, `.bin` file that torch.save
    wrote, in either of its formats. Nothing in the file is executed.

    A checkpoint with the weights under "state_dict" or "model" gives these; "module." is removed
    where all names begin with it. bfloat16 is given as float32. Arrays may be read-only views of
    common memory. WeightsError, which names the file, for everything else, and for tensors with
    more elements than their storage (torch's `expand`).
    """
    path = Path(path)
    readers = {".pth": _read_torch, ".pt": _read_torch, ".bin": _read_torch}
    readers[".safetensors"] = _read_safetensors
    if path.suffix in readers and not path.exists():
        raise WeightsError(f"{path}: no such file")
    if path.suffix not in readers or not path.is_file():
        raise WeightsError(f"{path}: expected a file with one of the suffixes {', '.join(readers)}")
    try:
        state = readers[path.suffix](path)
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from error
    except Exception as error:  # whatever zipfile, pickletools and numpy make of a damaged file
        reason = f"{type(error).__name__}: {error}"
        raise WeightsError(f"{path}: damaged, or not a file of weights ({reason})") from error
    if all(name.startswith("module.") for name in state):
        return {name.removeprefix("module."): array for name, array in state.items()}
    return state


def write_state_dict(path: str | Path, arrays: dict[str, np.ndarray]) -> None:
    """Write {name: array} as `.safetensors`, or as `.pth` in torch's zip format; all of it or
    nothing. bfloat16 is written as float32. WeightsError for other suffixes and dtypes."""
    path = Path(path)
    writers = {".pth": _torch_zip, ".safetensors": safetensors.numpy.save}
    if path.suffix not in writers:
        raise WeightsError(f"{path}: expected one of the suffixes {', '.join(writers)}")
    plain = {}
    for name, array in arrays.items():
        if array.dtype.name == "bfloat16":
            array = array.astype(np.float32)
        if (dtype := array.dtype.str[1:]) not in {*_TORCH.values()} - {BFLOAT16}:
            raise WeightsError(f"{path}: {name} is {array.dtype}, which state dicts do not hold")
        plain[name] = np.asarray(array, f"<{dtype}", order="C")
    data = writers[path.suffix](plain)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    state = {}
    for name, entry in safetensors.deserialize(path.read_bytes()):
        if entry["dtype"] not in _SAFETENSORS:
            raise WeightsError(f"{name} is {entry['dtype']}, expected {', '.join(_SAFETENSORS)}")
        numbers = _numbers(entry["data"], _SAFETENSORS[entry["dtype"]])
        state[name] = numbers.reshape(entry["shape"])
    return state


def _read_torch(path: Path) -> dict[str, np.ndarray]:
    tensors, flats = _read_zip(path) if zipfile.is_zipfile(path) else _read_legacy(path)
    return {name: _array(name, tensor, flats[tensor.storage]) for name, tensor in tensors.items()}


def _read_zip(path: Path) -> tuple[dict[str, _Tensor], dict[_Storage, np.ndarray]]:
    """ROOT/data.pkl, ROOT/byteorder, and each storage as ROOT/data/KEY."""
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        if sum(entry.file_size for entry in entries) > path.stat().st_size:
            raise WeightsError("its entries are larger than the file; torch does not compress them")
        names = [entry.filename for entry in entries]
        (root,) = {name.split("/")[0] for name in names if name.split("/")[1:] == ["data.pkl"]}
        order = archive.read(f"{root}/byteorder") if f"{root}/byteorder" in names else b"little"
        order = {b"little": "<", b"big": ">"}[order]
        tree, _ = _unpickle(io.BytesIO(archive.read(f"{root}/data.pkl")))
        tensors = _state_dict(tree)
        flats = {}
        for storage in {tensor.storage for tensor in tensors.values()}:
            data = archive.read(f"{root}/data/{storage.key}")
            flats[storage] = _flat(storage, data, order)
    return tensors, flats


def _read_legacy(path: Path) -> tuple[dict[str, _Tensor], dict[_Storage, np.ndarray]]:
    """Pickles of a magic number, the version, facts of the machine, the object, the storages' keys;
    then each storage: its size as int64 and its numbers, always little-endian."""
    stream = io.BytesIO(path.read_bytes())
    if stream.getbuffer()[:2] == b"PK":
        raise WeightsError("cut off: the zip archive that torch.save writes has no end")
    if _unpickle(stream)[0] != _MAGIC:
        raise WeightsError("expected what torch.save writes")
    _version, _machine, (tree, storages), (keys, _) = [_unpickle(stream) for _ in range(4)]
    tensors, flats = _state_dict(tree), {}
    for key in keys:
        if not (isinstance(key, str) and key in storages):
            raise WeightsError("it has storages that none of its tensors is in")
        size, storage = int.from_bytes(stream.read(8), "little"), storages[key]
        if size != storage.size:
            raise WeightsError(f"storage {key} has {size} numbers, not {storage.size}")
        flats[storage] = _flat(storage, stream.read(size * int(storage.dtype[1])))
    return tensors, flats


def _unpickle(stream: io.BytesIO) -> tuple[Any, dict[str, _Storage]]:
    """The object of one pickle, and the storages that it speaks of by their keys."""
    stack, marks, memo, storages = [], [], {}, {}
    constants = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
    counts = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3, "APPEND": 1, "SETITEM": 2, "REDUCE": 2}

    def take(operation: str) -> list:
        """The arguments of an operation: so many, or all since the last mark."""
        start = len(stack) - counts[operation] if operation in counts else marks.pop()
        items = stack[start:]
        del stack[start:]
        return items

    for opcode, value, _ in pickletools.genops(stream):
        match opcode.name:
            case "PROTO" | "FRAME":
                pass
            case "STOP":
                break
            case "MARK":
                marks.append(len(stack))
            case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT":
                stack.append(value)
            case "BINUNICODE" | "SHORT_BINUNICODE" | "BINSTRING" | "SHORT_BINSTRING":
                stack.append(value)
            case "NONE" | "NEWTRUE" | "NEWFALSE" | "EMPTY_TUPLE":
                stack.append(constants[opcode.name])
            case "EMPTY_LIST" | "EMPTY_DICT":
                stack.append([] if opcode.name == "EMPTY_LIST" else {})
            case "TUPLE" | "TUPLE1" | "TUPLE2" | "TUPLE3":
                stack.append(tuple(take(opcode.name)))
            case "APPEND" | "APPENDS":
                items = take(opcode.name)
                stack[-1].extend(items)
            case "SETITEM" | "SETITEMS":
                items = take(opcode.name)
                if not isinstance(stack[-1], _Unread):
                    stack[-1].update(_items(zip(items[::2], items[1::2], strict=True)))
            case "BINPUT" | "LONG_BINPUT" | "MEMOIZE":
                memo[len(memo) if value is None else value] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[value])
            case "GLOBAL":
                stack.append(_known(str(value).replace(" ", ".")))
            case "STACK_GLOBAL":
                stack[-2:] = [_known(".".join(stack[-2:]))]
            case "REDUCE":
                stack.append(_call(*take(opcode.name)))
            case "NEWOBJ" if stack[-2] in _BESIDE:
                stack[-2:] = [_Unread(stack[-2])]
            case "BINPERSID":
                stack[-1] = _storage(stack[-1])
                storages[stack[-1].key] = stack[-1]
            case "BUILD":  # what torch keeps beside the tensors, `_metadata`
                stack.pop()
            case name:
                raise WeightsError(f"its pickle has the operation {name}; no state dict needs it")
    return stack.pop(), storages


def _known(name: str) -> str:
    if name not in _NAMES + _BESIDE:
        raise WeightsError(f"asks for {name[:80]}; a state dict needs only {', '.join(_NAMES)}")
    return name


def _call(function: Any, arguments: Any) -> Any:
    """What a call of one of the known names gives."""
    match function, arguments:
        case "collections.OrderedDict", ():
            return {}
        case "collections.OrderedDict", (list(pairs),):  # as Python 2 writes it
            items = _items(pairs)
            pairs.clear()  # a list that is used again and again could fill the memory
            return items
        case "torch.Size", (tuple(shape),):
            return shape
        case str(name), (_Tensor() as tensor, *_) if name in _PARAMETER:
            return tensor
        case str(name), (_Storage() as storage, offset, shape, strides, *_) if name in _TENSOR:
            return _Tensor(storage, offset, shape, strides)
        case str(name), tuple() if name in _BESIDE:
            return _Unread(name)
    raise WeightsError("its pickle makes a call that no state dict needs")


def _storage(identity: Any) -> _Storage:
    """A storage as pickles name it; legacy ones end in None, where older ones have a view."""
    match identity:
        case "storage", str(kind), str(key), _, int(size), *rest if rest in ([], [None]):
            if kind in _TORCH:
                return _Storage(_TORCH[kind], key, size)
    raise WeightsError("its pickle has a storage of unknown form")


def _items(pairs: Any) -> dict:
    """A dict of words and numbers; to hash anything else could exhaust the stack."""
    items = list(pairs)
    if not all(isinstance(key, str | int) for key, _ in items):
        raise WeightsError("its pickle has a dict with keys that are neither words nor numbers")
    return dict(items)


def _state_dict(tree: Any) -> dict[str, _Tensor]:
    """The state dict in what a file holds."""
    if not isinstance(tree, dict):
        raise WeightsError(f"holds a {type(tree).__name__}, expected a dict of names and tensors")
    nested = [tree[name] for name in ("state_dict", "model") if isinstance(tree.get(name), dict)]
    state = nested[0] if nested else tree
    for name, value in state.items():
        if not (isinstance(name, str) and isinstance(value, _Tensor)):
            kind = value.name if isinstance(value, _Unread) else type(value).__name__
            raise WeightsError(
                f"{str(name)[:80]} is a {kind}, expected names and tensors, or a "
                "checkpoint with these under state_dict or model"
            )
    return state


def _numbers(data: bytes | bytearray, dtype: str, order: str = "<") -> np.ndarray:
    """Bytes, little-endian "<" or big-endian ">", as flat numbers."""
    if dtype == BFLOAT16:  # the upper half of a float32
        return (_numbers(data, "u2", order).astype(np.uint32) << 16).view(np.float32)
    return np.frombuffer(data, f"{order}{dtype}").astype(dtype, copy=False)


def _flat(storage: _Storage, data: bytes, order: str = "<") -> np.ndarray:
    """The numbers of a storage, as many as it declares."""
    flat = _numbers(data, storage.dtype, order)
    if flat.size != storage.size:
        raise WeightsError(f"storage {storage.key} has {flat.size} numbers, not {storage.size}")
    return flat


def _array(name: str, tensor: _Tensor, flat: np.ndarray) -> np.ndarray:
    """The view of its storage that a tensor is."""
    _, offset, shape, strides = tensor
    steps = list(zip(shape, strides, strict=True))
    if not all(isinstance(n, int) and n >= 0 for n in (offset, *shape, *strides)):
        raise WeightsError(f"{name}: shape, strides and offset are not whole numbers")
    size, last = math.prod(shape), offset + sum((n - 1) * stride for n, stride in steps)
    if size > flat.size or (size and last >= flat.size):
        raise WeightsError(f"{name}: {size} numbers, the last {last}, of storage of {flat.size}")
    if not size:
        return np.empty(shape, flat.dtype)
    strides = [stride * flat.itemsize for stride in strides]
    return np.lib.stride_tricks.as_strided(flat[offset:], shape, strides, writeable=False)


def _torch_zip(arrays: dict[str, np.ndarray]) -> bytes:
    """What torch.save makes of an OrderedDict of contiguous tensors."""

    def plain(value: Any) -> bytes:
        return pickle.dumps(value, 2)[2:-1]  # without protocol and stop

    kinds = {dtype: torch.replace(".", "\n").encode() for torch, dtype in _TORCH.items()}
    ordered_dict = b"ccollections\nOrderedDict\n)R"
    pickled = [b"\x80\x02", ordered_dict, b"("]
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for i, (name, array) in enumerate(arrays.items()):
            strides = tuple(step // array.itemsize for step in array.strides)
            storage = [plain("storage"), b"c", kinds[array.dtype.str[1:]], b"\n", plain(str(i))]
            pickled += [plain(name), b"ctorch._utils\n_rebuild_tensor_v2\n(("]
            pickled += [*storage, plain("cpu"), plain(array.size), b"tQ"]
            pickled += [plain(0), plain(array.shape), plain(strides)]
            pickled += [plain(False), ordered_dict, b"tR"]
            archive.writestr(f"archive/data/{i}", array.tobytes())
        archive.writestr("archive/data.pkl", b"".join([*pickled, b"u."]))
        archive.writestr("archive/byteorder", b"little")
        archive.writestr("archive/version", b"3\n")
    return file.getvalue()
