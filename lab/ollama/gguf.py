"""The header of a GGUF file: written for the catalogue's models, read for every model in the store."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

Scalar = bool | int | float | str
Value = Scalar | list[Scalar]

ALIGNMENT = 32
# ggml types: name -> (id, bytes of a block, elements of a block)
TYPES: dict[str, tuple[int, int, int]] = {
    "F32": (0, 4, 1),
    "F16": (1, 2, 1),
    "Q4_0": (2, 18, 32),
    "Q4_1": (3, 20, 32),
    "Q5_0": (6, 22, 32),
    "Q5_1": (7, 24, 32),
    "Q8_0": (8, 34, 32),
    "Q2_K": (10, 84, 256),
    "Q3_K": (11, 110, 256),
    "Q4_K": (12, 144, 256),
    "Q5_K": (13, 176, 256),
    "Q6_K": (14, 210, 256),
    "I8": (24, 1, 1),
    "I32": (26, 4, 1),
    "BF16": (30, 2, 1),
    "MXFP4": (39, 17, 32),
}
TYPE_NAMES = {number: name for name, (number, _, _) in TYPES.items()}
FILE_TYPES = {0: "F32", 1: "F16", 2: "Q4_0", 7: "Q8_0", 15: "Q4_K_M", 18: "Q6_K", 32: "BF16", 38: "MXFP4"}

_UINT32, _INT32, _FLOAT32, _BOOL, _STRING, _ARRAY, _UINT64 = 4, 5, 6, 7, 8, 9, 10
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}


class NotGgufError(ValueError):
    """The file is no GGUF, or ends too early."""


@dataclass(frozen=True)
class Tensor:
    """One tensor: its name, shape (fastest dimension first, as ggml has it) and type."""

    name: str
    shape: tuple[int, ...]
    kind: str

    @property
    def elements(self) -> int:
        """How many numbers it holds."""
        count = 1
        for size in self.shape:
            count *= size
        return count

    @property
    def size_bytes(self) -> int:
        """What it takes in memory."""
        _, block_bytes, block_elements = TYPES[self.kind]
        return self.elements * block_bytes // block_elements


@dataclass(frozen=True)
class Header:
    """Keys and tensors of a model."""

    keys: dict[str, Value]
    tensors: tuple[Tensor, ...]
    data_offset: int = 0

    @property
    def architecture(self) -> str:
        """The family, such as `llama` or `qwen2`."""
        return str(self.keys.get("general.architecture", "unknown"))

    def number(self, key: str, default: int = 0) -> int:
        """A key of the architecture as a number; of an array its largest entry."""
        value = self.keys.get(f"{self.architecture}.{key}", default)
        if isinstance(value, list):
            return max((int(item) for item in value), default=default)
        return int(value)

    @property
    def file_type(self) -> str:
        """How the weights are quantised, such as `Q4_K_M`."""
        return FILE_TYPES.get(int(str(self.keys.get("general.file_type", -1))), "unknown")

    @property
    def tensor_bytes(self) -> int:
        """Σ of the tensors' sizes."""
        return sum(tensor.size_bytes for tensor in self.tensors)

    @property
    def parameters(self) -> int:
        """How many weights the model has."""
        return sum(tensor.elements for tensor in self.tensors)


def _text(value: str) -> bytes:
    raw = value.encode()
    return struct.pack("<Q", len(raw)) + raw


def _encode(value: Value) -> tuple[int, bytes]:
    if isinstance(value, bool):
        return _BOOL, struct.pack("<?", value)
    if isinstance(value, int):
        return (_UINT32, struct.pack("<I", value)) if value >= 0 else (_INT32, struct.pack("<i", value))
    if isinstance(value, float):
        return _FLOAT32, struct.pack("<f", value)
    if isinstance(value, str):
        return _STRING, _text(value)
    if value and isinstance(value[0], int) and not isinstance(value[0], bool):
        packed = b"".join(struct.pack("<i", item) for item in value)
        return _ARRAY, struct.pack("<IQ", _INT32, len(value)) + packed
    kind = _encode(value[0])[0] if value else _STRING
    return _ARRAY, struct.pack("<IQ", kind, len(value)) + b"".join(_encode(item)[1] for item in value)


def encode(keys: dict[str, Value], tensors: list[Tensor]) -> tuple[bytes, int]:
    """The header's bytes, padded to where the data begin, and the length of the data behind it."""
    out = bytearray(b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(keys)))
    for key, value in keys.items():
        kind, raw = _encode(value)
        out += _text(key) + struct.pack("<I", kind) + raw
    offset = 0
    for tensor in tensors:
        out += _text(tensor.name) + struct.pack("<I", len(tensor.shape))
        out += b"".join(struct.pack("<Q", size) for size in tensor.shape)
        out += struct.pack("<IQ", TYPES[tensor.kind][0], offset)
        offset += -(-tensor.size_bytes // ALIGNMENT) * ALIGNMENT
    out += b"\0" * (-len(out) % ALIGNMENT)
    return bytes(out), offset


class _Reader:
    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def raw(self, size: int) -> bytes:
        data = self._file.read(size)
        if len(data) != size:
            raise NotGgufError("unexpected EOF")
        return data

    def number(self, form: str) -> int:
        return int(struct.unpack("<" + form, self.raw(struct.calcsize("<" + form)))[0])

    def text(self) -> str:
        size = self.number("Q")
        if size > 1 << 24:
            raise NotGgufError("unexpected EOF")
        return self.raw(size).decode("utf-8", "replace")

    def value(self, kind: int) -> Value:
        if kind == _STRING:
            return self.text()
        if kind == _ARRAY:
            inner, count = self.number("I"), self.number("Q")
            return [self.scalar(inner) for _ in range(count)]
        return self.scalar(kind)

    def scalar(self, kind: int) -> Scalar:
        if kind == _STRING:
            return self.text()
        form = _SCALARS.get(kind)
        if form is None:
            raise NotGgufError(f"invalid GGUF value type {kind}")
        value: Scalar = struct.unpack("<" + form, self.raw(struct.calcsize("<" + form)))[0]
        return _shortest(value) if form == "f" and isinstance(value, float) else value


def _shortest(value: float) -> float:
    """The number of fewest digits that a 32-bit float stands for, as Go prints it: 1e-05."""
    raw = struct.pack("<f", value)
    for digits in range(6, 9):
        short = float(f"{value:.{digits}g}")
        if struct.pack("<f", short) == raw:
            return short
    return value


def read(path: Path) -> Header:
    """Read a file's header; NotGgufError when there is none."""
    with path.open("rb") as file:
        reader = _Reader(file)
        if reader.raw(4) != b"GGUF":
            raise NotGgufError("invalid file magic")
        version = reader.number("I")
        if version == 0:
            return Header({}, ())  # as the real one does, which then calls the model `unknown`
        tensor_count, key_count = reader.number("Q"), reader.number("Q")
        keys: dict[str, Value] = {}
        for _ in range(key_count):
            key = reader.text()
            keys[key] = reader.value(reader.number("I"))
        tensors = []
        for _ in range(tensor_count):
            name = reader.text()
            shape = tuple(reader.number("Q") for _ in range(reader.number("I")))
            kind = TYPE_NAMES.get(reader.number("I"), "F32")
            reader.number("Q")
            tensors.append(Tensor(name, shape, kind))
        offset = -(-file.tell() // ALIGNMENT) * ALIGNMENT
    return Header(keys, tuple(tensors), offset)
