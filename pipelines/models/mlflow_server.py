"""What MLflow's server needs in order to serve a model that takes tables and arrays.

* `read_any_from_csv`: For text/csv MLflow asks the input schema for the pandas type of each column,
  and a schema with columns of type `any`, which arrays need, has no answer: the server refuses
  every table. Such columns are then read as they are written, as objects.
* `answer_in_one_line`: A request that cannot be read is answered by its reason alone, without a
  traceback, paths of the server, or the request itself.

Both change MLflow's own functions, once in a process. Other models are served as before.
"""

import logging
from collections.abc import Callable
from functools import wraps
from typing import Any

import numpy as np
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import ErrorCode
from mlflow.pyfunc import scoring_server
from mlflow.types.schema import AnyType, Schema

from pipelines.models.request_bodies import InputError, check_csv, failure_of, read_json
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
        except InputError:
            raise
        except MlflowException as error:
            raise _shortened(error) from None
        except Exception as error:
            logger.exception("a request failed")
            raise failure_of("the server", error) from None

    setattr(invocations, _MARK, True)
    scoring_server.invocations = invocations


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


def _shortened(error: MlflowException) -> MlflowException:
    """Returns an error of MLflow without its traceback and without the request that it repeats."""
    message = one_line(ValueError(error.message.rpartition("Error: ")[2]))
    if "stack_trace" in error.json_kwargs:  # it could not read the request
        return InputError(f"the request cannot be read: {message}")
    return MlflowException(message, error_code=ErrorCode.Value(error.error_code))
