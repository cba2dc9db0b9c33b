"""What MLflow needs in order to run and serve a model that takes tables and arrays.

* `read_any_from_csv`: For text/csv MLflow asks the input schema for the pandas type of each column,
  and a schema with columns of type `any`, which arrays need, has no answer: the server refuses
  every table. Such columns are then read as they are written, as objects.
* `answer_in_one_line`: A request that cannot be read is answered by its reason alone, without a
  traceback, paths of the server, or the request itself.
* `take_tensors`: MLflow refuses a tensor as a column, and repeats inputs that it refuses in its
  message, with all their numbers.

They change MLflow's own functions, once in a process. Other models run as before.
"""

import logging
from collections.abc import Callable, Collection, Mapping
from functools import wraps
from typing import Any

import numpy as np
import pandas as pd
import torch
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import ErrorCode
from mlflow.pyfunc import PyFuncModel, scoring_server
from mlflow.types.schema import AnyType, Schema

from pipelines.models.request_bodies import (
    InputError,
    check_columns,
    check_csv,
    failure_of,
    read_json,
)
from pipelines.redaction import one_line

logger = logging.getLogger(__name__)

_MARK = "xkd_changed_it"


def read_any_from_csv() -> None:
    """Makes `Schema.pandas_types` answer for columns of any type."""
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


def answer_in_one_line() -> None:
    """Makes the server check the requests of models that ask for it, and shorten its answers."""
    original: Callable[..., Any] = scoring_server.invocations
    if hasattr(original, _MARK):
        return

    @wraps(original)
    def invocations(data: Any, content_type: Any, model: Any, input_schema: Any) -> Any:
        if not _asks_for_it(model):
            return original(data, content_type, model, input_schema)
        try:
            data = _checked(data, content_type or "", model, input_schema)
            return original(data, content_type or "", model, input_schema)
        except MlflowException as error:
            raise error if _is_ours(error) else _shortened(error) from None
        except Exception as error:
            logger.exception("a request failed")
            raise failure_of("the server", error) from None

    setattr(invocations, _MARK, True)
    scoring_server.invocations = invocations


def take_tensors() -> None:
    """Makes `predict` take columns that are tensors, and refuse other inputs in one line."""
    original: Callable[..., Any] = PyFuncModel.predict
    if hasattr(original, _MARK):
        return

    @wraps(original)
    def predict(self: PyFuncModel, data: Any, params: Mapping[str, Any] | None = None) -> Any:
        if not _asks_for_it(self):
            return original(self, data, params)
        schema = self.metadata.get_input_schema()
        check_columns(_columns(data), [str(name) for name in schema.input_names()])
        if isinstance(data, Mapping):
            data = {name: _as_column(value) for name, value in data.items()}
        try:
            return original(self, data, params)
        except MlflowException as error:
            raise error if _is_ours(error) else _shortened(error) from None

    setattr(predict, _MARK, True)
    PyFuncModel.predict = predict  # type: ignore[method-assign]  # the model of MLflow itself


def _columns(data: Any) -> Collection[str]:
    """Returns the names of the columns of an input; none if it has no named columns."""
    if isinstance(data, Mapping | pd.DataFrame):
        return dict.fromkeys(str(name) for name in data if not isinstance(name, int))
    if isinstance(data, list | tuple):
        rows = [row for row in data if isinstance(row, Mapping)]
        return dict.fromkeys(str(name) for row in rows for name in row)
    return ()


def _as_column(value: Any) -> Any:
    """Returns a list of arrays for a tensor, one for each input."""
    if not isinstance(value, torch.Tensor):
        return value
    tensor = value.detach().cpu()
    array = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
    return list(array) if array.ndim else array.item()


def _asks_for_it(model: Any) -> bool:
    try:
        return bool(getattr(model.unwrap_python_model(), "answers_in_one_line", False))
    except (AttributeError, MlflowException):  # not a model of Python code
        return False


def _checked(data: Any, content_type: str, model: Any, input_schema: Schema) -> Any:
    """Returns a request as MLflow is to read it."""
    kind = content_type.partition(";")[0].strip()
    columns = [str(name) for name in input_schema.input_names()]
    if kind == scoring_server.CONTENT_TYPE_JSON:
        params = model.metadata.get_params_schema().params
        return read_json(data, columns, {one.name: one.dtype.name for one in params})
    if kind == scoring_server.CONTENT_TYPE_CSV:
        check_csv(data, columns)
    return data


def _is_ours(error: MlflowException) -> bool:
    """Whether it is an `InputError`, also that of another version, whose class is another one."""
    return isinstance(error, ValueError)


def _shortened(error: MlflowException) -> MlflowException:
    """Returns an error of MLflow without its traceback and without the request that it repeats."""
    message = one_line(ValueError(error.message.rpartition("Error: ")[2]))
    if "stack_trace" in error.json_kwargs:  # it could not read the request
        return InputError(f"the request cannot be read: {message}")
    return MlflowException(message, error_code=ErrorCode.Value(error.error_code))
