"""A NumPy-like view of an Arrow text column."""

from collections.abc import Collection, Iterator
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray


class TextColumn:
    """A view of an Arrow text column, usually mapped from a file.

    Indexing by a row returns a string. Indexing by row numbers, a mask or a slice returns a NumPy
    array.
    """

    def __init__(self, array: pa.Array) -> None:
        self._array = array

    def __len__(self) -> int:
        return len(self._array)

    def __iter__(self) -> Iterator[str]:
        return iter(self.tolist())

    def __getitem__(self, rows: Any) -> Any:
        if isinstance(rows, slice):
            return _to_text(self._array[rows])
        if np.ndim(rows) == 0:
            return self._array[int(rows)].as_py()
        chosen = np.asarray(rows)
        if chosen.dtype == bool:
            chosen = np.flatnonzero(chosen)
        return _to_text(self._array.take(pa.array(chosen.astype(np.int64))))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        text = _to_text(self._array)
        return text if dtype is None else text.astype(dtype)

    # Comparisons are elementwise, as for a NumPy array, where `object` promises a bool.
    def __eq__(self, text: object) -> NDArray[np.bool_]:  # type: ignore[override]  # by row
        return self.isin([str(text)])

    def __ne__(self, text: object) -> NDArray[np.bool_]:  # type: ignore[override]  # by row
        return ~self.isin([str(text)])

    def tolist(self) -> list[str]:
        """Returns the text of all rows."""
        return cast(list[str], self._array.to_pylist())

    def isin(self, values: Collection[str]) -> NDArray[np.bool_]:
        """Returns a mask of the rows whose text is in `values`."""
        wanted = pa.array(sorted(values), pa.large_string())
        if not pa.types.is_dictionary(self._array.type):
            return as_bool(pc.is_in(self._array, value_set=wanted))
        there = as_bool(pc.is_in(self._array.dictionary, value_set=wanted))
        return cast(NDArray[np.bool_], there[self._array.indices.to_numpy()])

    def unique(self) -> list[str]:
        """Returns the distinct texts, sorted."""
        return sorted(pc.unique(self._array).to_pylist())


def array_of(column: Any) -> pa.Array:
    """Returns a column as an Arrow array."""
    if isinstance(column, TextColumn):
        return column._array
    return pa.array(column.view(np.uint8) if column.dtype == bool else column)


def _to_text(array: pa.Array) -> NDArray[np.str_]:
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    return np.array(array.to_pylist(), dtype=np.str_)


def as_bool(array: pa.Array) -> NDArray[np.bool_]:
    """Returns an Arrow array of booleans as a NumPy array."""
    return cast(NDArray[np.bool_], array.to_numpy(zero_copy_only=False))
