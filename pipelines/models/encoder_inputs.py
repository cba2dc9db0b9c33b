"""What a registered encoder accepts: media paths, bytes of media, or decoded arrays.

An input is cut into segments as for a clip dataset, with one difference: the minimum length applies
to what is left at the end of a longer input only, because a user who asks for the embedding of a
short sound wants one. An input that cannot be used raises a `ValueError` that names it.
"""

import base64
import binascii
from collections.abc import Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torchaudio
from numpy.typing import NDArray

from pipelines.media.container import DecodeError
from pipelines.media.formats import Formats
from pipelines.models.encoder_files import EncoderInfo
from pipelines.models.input_decoder import Decode

Array = NDArray[Any]
ARRAY_COLUMN = {"video": "frames", "audio": "waveform"}
RATE_COLUMN = {"video": "frame_rate", "audio": "sample_rate"}
RATES = {"video": (0.01, 1_000.0), "audio": (100.0, 1_000_000.0)}
"""Rates that an array may have. With others, a small request could ask for any amount of memory."""
MAX_SECONDS = 6 * 3600.0
"""Length of an array at its rate, as of a file."""
_SHORTEST_SECONDS = 1e-6
_LARGEST_DENOMINATOR = 441


def input_rows(model_input: pd.DataFrame, info: EncoderInfo) -> Iterator[dict[str, Any]]:
    """Yields one input at a time; MLflow turns `{"path": ["a", "b"]}` into a single row.

    Raises:
        ValueError: If there is no column; MLflow drops columns of unknown names.
    """
    if not len(model_input.columns):
        raise ValueError('inputs must have a column that the model knows, as {"path": ["FILE"]}')
    columns = ("path", "bytes", RATE_COLUMN[info.modality])
    for record in model_input.to_dict("records"):
        row = {str(name): value for name, value in record.items() if not _is_missing(value)}
        lists = {name: row[name] for name in columns if _is_list(row.get(name))}
        if "path" not in lists and "bytes" not in lists:
            yield row
            continue
        lengths = {name: len(values) for name, values in lists.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"columns must be equally long, but their lengths are {lengths}")
        for values in zip(*lists.values(), strict=True):
            yield {**row, **dict(zip(lists, values, strict=True))}


def _is_missing(value: Any) -> bool:
    is_nan = isinstance(value, float | np.floating) and np.isnan(value)
    return value is None or value is pd.NA or value is pd.NaT or bool(is_nan)


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple | np.ndarray)


def read_segments(
    row: Mapping[str, Any], name: str, info: EncoderInfo, decode: Decode, formats: Formats
) -> Iterator[Array]:
    """Yields the frames or the waveform of each segment of an input; at least one.

    Args:
        row: The input.
        name: What it is called in messages.
        info: What the encoder takes.
        decode: What decodes a path or bytes.
        formats: Which containers and codecs it decodes.

    Raises:
        ValueError: As `EncoderModel.predict`.
    """
    column = ARRAY_COLUMN[info.modality]
    given = [kind for kind in ("path", "bytes", column) if kind in row]
    if len(given) != 1:
        raise ValueError(
            f"{name} must have exactly one of the columns path, bytes and {column}, "
            f"but has {' and '.join(given) or 'none of them'}"
        )
    if given[0] == column:
        yield from _array_segments(*_read_array(row, name, info), info)
        return
    source = _source(row, given[0], name)
    name = f"{name} ({row['path']})" if given[0] == "path" else name
    found = False
    for array in _decode(source, name, info, decode, formats):
        found = True
        yield array
    if not found:
        missing = "picture" if info.modality == "video" else "sound"
        raise ValueError(f"{name} has no {missing}, which the {info.modality} encoder needs")


def _source(row: Mapping[str, Any], kind: str, name: str) -> str | bytes:
    value = row[kind]
    if kind == "path" and isinstance(value, str | Path):
        return str(value)
    if kind == "bytes" and isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    if kind == "bytes" and isinstance(value, str):  # JSON and CSV hold no bytes
        return _from_base64(value, name)
    wanted = "a string" if kind == "path" else "the bytes of a file, or its base64 text"
    raise ValueError(f"{name}: {kind} must be {wanted}, but is of type {type(value).__name__}")


def _from_base64(text: str, name: str) -> bytes:
    if text.startswith("data:"):  # as browsers make it: data:video/mp4;base64,AAAA
        text = text.partition(";base64,")[2]
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"{name}: bytes must be base64 text, but it is not: {error}") from error


def _decode(
    source: str | bytes, name: str, info: EncoderInfo, decode: Decode, formats: Formats
) -> Iterator[Array]:
    segments = decode(
        source,
        formats=formats,
        segment_seconds=info.clips.segment_seconds,
        min_segment_seconds=info.clips.min_segment_seconds,
        min_source_seconds=_SHORTEST_SECONDS,
        frame_rate=info.model.video.frame_rate,
        short_side=info.clips.short_side,
        sample_rate=info.model.audio.sample_rate,
    )
    try:
        for segment in segments:
            array = segment.frames if info.modality == "video" else segment.waveform
            if array is not None:
                yield array
    except DecodeError as error:
        # The model has a parameter where a job has a setting.
        message = error.message.replace("limits.formats=all", "the parameter formats=all")
        raise ValueError(f"{name} cannot be decoded: {error.reason}, {message}") from error


def _read_array(row: Mapping[str, Any], name: str, info: EncoderInfo) -> tuple[Array, float]:
    """Reads frames or a waveform, and their rate."""
    column = ARRAY_COLUMN[info.modality]
    rate = _read_rate(row, name, info)
    try:
        array = np.asarray(row[column])
    except ValueError as error:
        raise ValueError(f"{name}: {column} is not a rectangular array") from error
    dtype: np.dtype[Any]
    if info.modality == "video":
        is_shaped = array.ndim == 4 and array.shape[-1] == 3
        dtype, shape = np.dtype(np.uint8), "(T, H, W, 3)"
    else:
        is_shaped = array.ndim == 1
        dtype, shape = np.dtype(np.int16), "(S,)"
    if not is_shaped or not array.size or not _fits(array, dtype):
        raise ValueError(
            f"{name}: {column} must be a list of arrays, one for each input, of type {dtype} and "
            f"shape {shape}, but this one is {array.dtype} of shape {array.shape}"
        )
    if len(array) > MAX_SECONDS * rate:
        raise ValueError(
            f"{name}: {column} of {len(array) / rate:,.0f} s must not be longer than "
            f"{MAX_SECONDS:,.0f} s"
        )
    return array.astype(dtype), rate


def _read_rate(row: Mapping[str, Any], name: str, info: EncoderInfo) -> float:
    column, (lowest, highest) = RATE_COLUMN[info.modality], RATES[info.modality]
    try:
        rate = float(row.get(column, info.rate))
    except (TypeError, ValueError, OverflowError):
        rate = np.nan
    if not lowest <= rate <= highest:
        raise ValueError(
            f"{name}: {column} ({row[column]}) must be a number from {lowest:g} to {highest:,.0f}"
        )
    return rate


def _fits(array: Array, dtype: np.dtype[Any]) -> bool:
    """Whether integers, such as those from nested lists, fit this type."""
    if array.dtype == dtype:
        return True
    limits = np.iinfo(dtype)
    is_integer = np.issubdtype(array.dtype, np.integer)
    return bool(is_integer and limits.min <= array.min() and array.max() <= limits.max)


def _array_segments(array: Array, rate: float, info: EncoderInfo) -> Iterator[Array]:
    """Resamples an array to the encoder's rate, and cuts it."""
    if info.modality == "video":
        # Cut before frames are repeated: a low rate would multiply all of them at once.
        for ticks in _cut(visible_frames(len(array), rate, info.rate), info):
            yield array[ticks]
        return
    yield from _cut(resample_waveform(array, round(rate), round(info.rate)), info)


def visible_frames(num_frames: int, rate: float, wanted_rate: float) -> NDArray[np.int64]:
    """Returns the number of the frame that is visible at each tick of the wanted rate.

    >>> visible_frames(3, 3.0, 6.0).tolist()
    [0, 0, 1, 1, 2, 2]
    """
    num_ticks = max(1, round(num_frames / rate * wanted_rate))
    seen = np.floor(np.arange(num_ticks) / wanted_rate * rate + 1e-6).astype(np.int64)
    return seen.clip(max=num_frames - 1)


def resample_waveform(waveform: Array, rate: int, wanted_rate: int) -> Array:
    """Resamples a waveform, rounded to 16-bit samples again.

    The filter has a coefficient for each pair of samples of the two rates in lowest terms. Between
    44,101 and 16,000 Hz these are 700 million. Such a ratio is rounded, by less than 1e-5.
    """
    if rate == wanted_rate:
        return waveform
    ratio = Fraction(max(rate, wanted_rate), min(rate, wanted_rate))
    high, low = ratio.limit_denominator(_LARGEST_DENOMINATOR).as_integer_ratio()
    original, wanted = (high, low) if rate > wanted_rate else (low, high)
    samples = torchaudio.functional.resample(torch.from_numpy(waveform).float(), original, wanted)
    limits = np.iinfo(np.int16)
    resampled: Array = samples.round().clamp(limits.min, limits.max).numpy().astype(np.int16)
    return resampled


def _cut(array: Array, info: EncoderInfo) -> Iterator[Array]:
    """Cuts segments as decoding does: a short rest is dropped, a short whole is not."""
    frame_rate = info.model.video.frame_rate
    seconds = max(1, round(info.clips.segment_seconds * frame_rate)) / frame_rate
    length = max(1, round(seconds * info.rate))
    for start in range(0, len(array), length):
        segment = array[start : start + length]
        if start == 0 or len(segment) >= info.clips.min_segment_seconds * info.rate:
            yield segment
