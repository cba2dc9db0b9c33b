"""Reads the bodies that MLflow's server gets for an encoder, and says in one line what is wrong.

MLflow answers a malformed body with a traceback or with the whole body, and takes rows of
`instances` apart by column, so that a row without a column shifts the rows after it. Here every
form of JSON becomes rows first:

    {"dataframe_records": [{"path": "a"}]}                           rows as they are
    {"instances": [{"path": "a"}]}, {"inputs": [{"path": "a"}]}      the same
    {"dataframe_split": {"columns": ["path"], "data": [["a"]]}}      a row for each list of `data`
    {"inputs": {"path": ["a"], "frame_rate": 25}}                    a row for each path
"""

import json
from collections.abc import Collection, Mapping
from io import StringIO
from typing import Any

import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import BAD_REQUEST, INTERNAL_ERROR

from pipelines.redaction import one_line

_FORMS = ("dataframe_records", "dataframe_split", "inputs", "instances")
_TYPES: Mapping[str, type] = {"long": int, "string": str}
_SHOWN = 10
"""Names of unknown columns that a message repeats."""
_EXAMPLE = '{"path": "FILE"}'


class InputError(MlflowException, ValueError):
    """An input that cannot be embedded; MLflow's server answers with its message alone."""

    def __init__(self, message: str) -> None:
        super().__init__(message, error_code=BAD_REQUEST)

    @property
    def message(self) -> str:
        """What is wrong."""
        return self._message

    @message.setter
    def message(self, message: str) -> None:
        """Keeps the first message: MLflow's server would put the whole input before it."""
        self._message = getattr(self, "_message", message)


def failure_of(what: str, error: Exception) -> MlflowException:
    """Returns what clients see of a failure: no message, which may hold paths of this machine."""
    return MlflowException(
        f"{what} failed with {type(error).__name__}; the log of its process says why",
        error_code=INTERNAL_ERROR,
    )


def read_json(body: bytes | str, columns: Collection[str], params: Mapping[str, str]) -> Any:
    """Returns what a JSON body holds as `{"dataframe_records": rows, "params": {...}}`.

    Args:
        body: The body.
        columns: Names that an input may have.
        params: Types of the parameters, by name.

    Raises:
        InputError: If it is malformed; the message names the input and the reason.
    """
    try:
        values = json.loads(body)
    except RecursionError:
        raise InputError("the request is no JSON that can be read: it nests too deeply") from None
    except ValueError as error:
        raise InputError(f"the request is no JSON: {one_line(error)}") from None
    forms = ", ".join(_FORMS)
    if not isinstance(values, dict):
        raise InputError(f"the request must be an object with one of {forms}, not {_kind(values)}")
    given = [name for name in _FORMS if name in values]
    if len(given) != 1:
        has = " and ".join(given) or "none of them"
        raise InputError(f"the request must have exactly one of {forms}, but has {has}")
    rows = _rows(given[0], values[given[0]])
    _check_rows(given[0], rows, columns)
    answer: dict[str, Any] = {"dataframe_records": rows}
    if values.get("params") is not None:
        answer["params"] = _checked_params(values["params"], params)
    return answer


def check_csv(body: bytes | str, columns: Collection[str]) -> None:
    """Makes sure that a body is a table whose first line names a column that the model knows.

    Raises:
        InputError: If it is not; the message names the line and the reason.
    """
    try:
        text = body.decode() if isinstance(body, bytes) else body
        # Without a header: pandas would take surplus values of a row for an index.
        table = pd.read_csv(StringIO(text), header=None, dtype=object)
    except (ValueError, OverflowError, pd.errors.ParserError) as error:
        reason = one_line(error).removeprefix("Error tokenizing data. C error: ")
        raise InputError(f"the request is no CSV table: {reason}") from None
    names = [str(name) for name in table.iloc[0]]
    if not set(names) & set(columns):
        raise InputError(_unknown(names, columns))
    if len(set(names)) < len(names):
        raise InputError(f"the request names a column twice: {', '.join(names)}")


def check_columns(names: Collection[str], columns: Collection[str]) -> None:
    """Makes sure that inputs have a column that the model knows.

    Raises:
        InputError: If they have not.
    """
    if not set(names) & set(columns):
        raise InputError(f'{_unknown(names, columns)}; an example: {{"path": ["FILE"]}}')


def _rows(form: str, value: Any) -> list[Any]:
    """Returns the rows of a form of JSON."""
    if form == "dataframe_split":
        return _split_rows(value)
    if form != "dataframe_records" and isinstance(value, dict):
        return _column_rows(form, value)
    if not isinstance(value, list):
        raise InputError(f"{form} must be a list of objects such as {_EXAMPLE}, not {_kind(value)}")
    return value


def _split_rows(value: Any) -> list[dict[str, Any]]:
    columns, data = (value.get("columns"), value.get("data")) if _is_split(value) else (None, None)
    if not isinstance(columns, list) or not isinstance(data, list):
        raise InputError(
            'dataframe_split must be an object such as {"columns": ["path"], "data": [["FILE"]]}'
        )
    if not all(isinstance(name, str) for name in columns) or len({*columns}) < len(columns):
        raise InputError("dataframe_split: columns must be different strings")
    for number, row in enumerate(data):
        if not isinstance(row, list):
            raise InputError(f"dataframe_split: input {number} must be a list, not {_kind(row)}")
        if len(row) != len(columns):
            raise InputError(
                f"dataframe_split: input {number} has {len(row)} values for {len(columns)} columns"
            )
    return [dict(zip(columns, row, strict=True)) for row in data]


def _is_split(value: Any) -> bool:
    return isinstance(value, dict) and value.keys() <= {"columns", "data", "index"}


def _column_rows(form: str, value: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns rows of lists by column; a value that is no list holds for every row."""
    lengths = {name: len(found) for name, found in value.items() if isinstance(found, list)}
    if len(set(lengths.values())) > 1:
        raise InputError(f"{form}: columns must be equally long, but their lengths are {lengths}")
    if not lengths:
        return [value] if value else []
    return [
        {name: found[row] if name in lengths else found for name, found in value.items()}
        for row in range(next(iter(lengths.values())))
    ]


def _check_rows(form: str, rows: list[Any], columns: Collection[str]) -> None:
    if not rows:
        raise InputError(f"{form} holds no input")
    names: dict[str, None] = {}
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise InputError(
                f"input {number} must be an object such as {_EXAMPLE}, not {_kind(row)}"
            )
        names |= dict.fromkeys(row)
        for name, value in row.items():
            if isinstance(value, str) and not _is_text(value):
                raise InputError(f"input {number}: {name} is no valid Unicode text")
    if not names.keys() & set(columns):
        raise InputError(_unknown(names, columns))


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _checked_params(params: Any, types: Mapping[str, str]) -> dict[str, Any]:
    if not isinstance(params, dict):
        raise InputError(f"params must be an object, not {_kind(params)}")
    for name, value in params.items():
        if name not in types:
            raise InputError(f"params: {name} is unknown; parameters: {', '.join(types)}")
        wanted = _TYPES[types[name]]
        if not isinstance(value, wanted) or isinstance(value, bool):
            kind = "an integer" if wanted is int else "a string"
            raise InputError(f"params: {name} must be {kind}, not {_kind(value)}")
    return params


def _unknown(names: Collection[str], columns: Collection[str]) -> str:
    shown = ", ".join(list(names)[:_SHOWN]) or "none"
    if len(names) > _SHOWN:
        shown += f" and {len(names) - _SHOWN} more"
    return f"inputs have no column that the model knows: {shown}; known: {', '.join(columns)}"


def _kind(value: Any) -> str:
    """What JSON calls the type of a value."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    kinds = ((dict, "an object"), (list, "a list"), (str, "a string"))
    return next((kind for one, kind in kinds if isinstance(value, one)), "a number")
