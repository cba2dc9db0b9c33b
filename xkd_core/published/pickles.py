r"""Reads files of `torch.save` without executing anything in them.

PyTorch's `weights_only` reader refuses every callable except a few of its own. Published
checkpoints need three more: their scheduler is a NumPy array, so each learning rate and weight
decay in `optimizer.param_groups` is a `numpy.float64`, pickled as

    scalar(dtype("f8", False, True), b"\x00\x00\x00\x00\x00\x00\xf0?")

NumPy's own `dtype` and `scalar` are unsafe for untrusted files: the state of a `dtype` may declare
that the bytes are addresses of Python objects. `NumberType` and `_read_number` replace them and
accept only plain numbers.
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
    """Reads the tensors, containers, strings and numbers of a file.

    Raises:
        ValueError: If the file is of another kind, damaged, or holds anything else; in one line.
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
    """Replaces `numpy.dtype`: kind, size and byte order of one number.

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
    r"""Replaces NumPy's `multiarray.scalar`: decodes the bytes of one number.

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
    r"""Removes control characters from a name in a file and shortens it for messages.

    >>> printable("cls_token\n\x1b[31m")
    'cls_token[31m'
    """
    kept = "".join(letter for letter in str(text)[:1000] if letter.isprintable())
    return kept if len(kept) <= _LONGEST_NAME else f"{kept[:_LONGEST_NAME]}..."


def _damage(file: Path) -> str | None:
    """Returns what is wrong with the whole file; PyTorch does not verify checksums of a zip.

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
    """Returns in one line why a file was not read; PyTorch's messages have several, in color."""
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
