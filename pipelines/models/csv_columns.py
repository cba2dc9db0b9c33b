"""Lets MLflow's server read text/csv for a model that also takes arrays.

For text/csv MLflow asks the input schema for the pandas type of each column, and a schema with
columns of type `any`, which arrays need, has no answer: the server refuses every table. With
`read_any_from_csv` such columns are read as they are written, as objects; other schemas answer as
before.
"""

from functools import wraps
from typing import Any

import numpy as np
from mlflow.types.schema import AnyType, Schema

_MARK = "reads_any_from_csv"


def read_any_from_csv() -> None:
    """Makes `Schema.pandas_types` answer for columns of any type; once in a process."""
    original = Schema.pandas_types
    if hasattr(original, _MARK):
        return

    @wraps(original)
    def pandas_types(self: Schema) -> list[Any]:
        if self.is_tensor_spec() or not any(
            isinstance(column.type, AnyType) for column in self.inputs
        ):
            return original(self)
        types: list[Any] = [column.type for column in self.inputs]
        return [np.dtype(object) if isinstance(one, AnyType) else one.to_pandas() for one in types]

    setattr(pandas_types, _MARK, True)
    Schema.pandas_types = pandas_types  # type: ignore[method-assign]  # the schema of MLflow itself
