r"""What a file of `torch.save` holds, read without running anything in it.

PyTorch's `weights_only` reader refuses every name that a pickle could call, but for a few of its
own. Published checkpoints need three more: the scheduler of their training is a NumPy array, so
each learning rate and weight decay in `optimizer.param_groups` is a `numpy.float64`, pickled as

    scalar(dtype("f8", False, True), b"\x00\x00\x00\x00\x00\x00\xf0?")

NumPy's own `dtype` and `scalar` do not read files from outside: the state of a `dtype` may claim
that the bytes are addresses of Python objects. `NumberType` and `_read_number` stand in for them
and take plain numbers alone.
"""

import re
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.serialization import safe_globals

_LONGEST_NAME = 120
_CODES = frozenset({"b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"})
_BYTE_ORDERS = frozenset("<>|=")
# Parts of what `torch.load` raises, whose whole text runs over many lines.
_REFUSED_NAME = re.compile(r"GLOBAL (.+?) (?:was not an allowed global|whose module)")
_REFUSED_NUMBER = re.compile(r"holds a NumPy [^\n;]+")


def read_pickle(file: Path) -> Any:
    """The tensors, containers, texts, and numbers of a file.

    Raises:
        ValueError: If it is no such file, is damaged, or holds anything else; one line.
    """
    if not file.is_file():
        raise ValueError(f"{file} does not exist or is no file")
    try:
        damage = _damage(file)
        if damage is None:
            with safe_globals(list(_NUMBERS)), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # on the protocol of a pickle that is then refused
                return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a broken or hostile file makes the readers raise
        raise ValueError(f"{file} {_refusal(error)}") from error
    raise ValueError(f"{file} {damage}")


class NumberType:
    """Stands in for `numpy.dtype`: the kind, size, and byte order of one number.

    Raises:
        ValueError: If it is anything but a plain number.
    """

    code: str = ""
    byte_order: str = "="

    def __init__(self, code: Any, align: Any = False, copy: Any = True) -> None:
        del align, copy  # only records have a layout
        if code not in _CODES:
            raise ValueError("holds a NumPy value that is not a plain number")
        self.code = code

    def __setstate__(self, state: Any) -> None:
        """Takes the byte order from `(version, byte order, sub-array, names, fields, ...)`."""
        if not isinstance(state, tuple) or len(state) < 5 or any(state[2:5]):
            raise ValueError("holds a NumPy value that is not a plain number")
        if state[1] not in _BYTE_ORDERS:
            raise ValueError("holds a NumPy number of an unknown byte order")
        self.byte_order = state[1]


def _read_number(number_type: Any, content: Any) -> float | int | bool:
    r"""Stands in for NumPy's `multiarray.scalar`: the number that some bytes are.

    >>> _read_number(NumberType("f8"), b"\x00\x00\x00\x00\x00\x00\xf0?")
    1.0

    Raises:
        ValueError: If the bytes are not those of one such number.
    """
    if not isinstance(number_type, NumberType) or not number_type.code:
        raise ValueError("holds a NumPy value that is not a plain number")
    dtype = np.dtype(f"{number_type.byte_order}{number_type.code}")
    if not isinstance(content, bytes) or len(content) != dtype.itemsize:
        raise ValueError(f"holds a NumPy number that is not {dtype.itemsize} bytes long")
    number: float | int | bool = np.frombuffer(content, dtype).item()
    return number


_NUMBERS: tuple[tuple[Callable[..., Any], str], ...] = (
    (NumberType, "numpy.dtype"),
    (_read_number, "numpy._core.multiarray.scalar"),
    (_read_number, "numpy.core.multiarray.scalar"),  # written with NumPy 1
)


def printable(text: Any) -> str:
    r"""A name from a file, without what a terminal would obey, and short enough for a message.

    >>> printable("cls_token\n\x1b[31m")
    'cls_token[31m'
    """
    kept = "".join(letter for letter in str(text)[:1000] if letter.isprintable())
    return kept if len(kept) <= _LONGEST_NAME else f"{kept[:_LONGEST_NAME]}..."


def _damage(file: Path) -> str | None:
    """What is wrong with the file as a whole; PyTorch does not compare the checksums of a zip.

    Files of PyTorch before 1.6 are not zips and have no checksums.
    """
    if not file.stat().st_size:
        return "is empty"
    if not zipfile.is_zipfile(file):
        return None
    with zipfile.ZipFile(file) as archive:
        records = archive.infolist()
        endings = {record.filename.rpartition("/")[2] for record in records}
        if "constants.pkl" in endings:
            return "is a TorchScript program, not a file of weights"
        if "data.pkl" not in endings:
            return "is a zip that torch.save did not write"
        for record in records:
            if record.compress_type != zipfile.ZIP_STORED:
                return (
                    f"is damaged: {printable(record.filename)} is compressed, as in no checkpoint"
                )
        wrong = archive.testzip()
    return f"is damaged: the checksum of {printable(wrong)} is wrong" if wrong else None


def _refusal(error: Exception) -> str:
    """Why a file was not read, in one line; PyTorch's own texts are several, in color."""
    message = str(error)
    if isinstance(error, PermissionError):
        return "cannot be read: permission denied"
    if isinstance(error, MemoryError) or "allocate memory" in message:
        return "needs more memory than is free"
    if found := _REFUSED_NAME.search(message):
        name = printable(found[1])
        name = name if "." in name else f"builtins.{name}"  # PyTorch leaves that out
        return f"holds {name}, which is not weights; nothing in it was run"
    if found := _REFUSED_NUMBER.search(message):
        return f"{found[0]}; nothing in it was run"
    return "is truncated, damaged, or not written by torch.save; nothing in it was run"
