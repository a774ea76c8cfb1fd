"""Columns of vectors as matrices, without a Python object for every number: Arrow lists, strings, pgvector's own form.

Each function takes values that are there (no nulls) and returns `[n, dim]`, float16 where the values are, else float32.
They raise `Unusable` for a value that is no vector or has another width than the first.
"""

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

Matrix: TypeAlias = NDArray[Any]

#: How PostgreSQL sends a vector (`vector_send`, `halfvec_send` of pgvector; `array_send`): a header, then big-endian
#: values, those of an array each after its own size.
_VECTOR = [("dim", ">i2"), ("unused", ">i2")]
_ARRAY = [("axes", ">i4"), ("nulls", ">i4"), ("type", ">u4"), ("dim", ">i4"), ("first", ">i4")]
_POSTGRES: dict[str, tuple[list[tuple[str, str]], Any]] = {
    "vector": (_VECTOR, ">f4"),
    "halfvec": (_VECTOR, ">f2"),
    "_float4": (_ARRAY, [("size", ">i4"), ("value", ">f4")]),
    "_float8": (_ARRAY, [("size", ">i4"), ("value", ">f8")]),
}
POSTGRES_TYPES = frozenset(_POSTGRES)


class Unusable(Exception):
    """A value that is no vector. `row` is its place among the values."""

    def __init__(self, row: int, problem: str) -> None:
        super().__init__(problem)
        self.row = row


def is_string(type_: pa.DataType) -> bool:
    """Whether an Arrow column of this type holds strings."""
    type_ = type_.value_type if pa.types.is_dictionary(type_) else type_
    return bool(pa.types.is_string(type_) or pa.types.is_large_string(type_) or pa.types.is_string_view(type_))


def holds_vectors(type_: pa.DataType) -> bool:
    """Whether `of_arrow` reads an Arrow column of this type."""
    is_list = pa.types.is_list(type_) or pa.types.is_large_list(type_) or pa.types.is_fixed_size_list(type_)
    return is_string(type_) or bool(is_list and pa.types.is_floating(type_.value_type))


def of_arrow(column: Any) -> Matrix:
    """The vectors of an Arrow array of lists of floats, or of strings."""
    if is_string(column.type):
        return of_strings(column.to_pylist())
    values = column.flatten()
    if values.null_count:
        raise Unusable([None in row for row in column.to_pylist()].index(True), "has nulls in it")
    widths = pc.list_value_length(column).to_numpy(zero_copy_only=False)
    return _rows(values.to_numpy(zero_copy_only=False), widths)


def of_strings(strings: Sequence[str]) -> Matrix:
    """The vectors of strings like `[0.1, 2e-3]`: JSON, and how pgvector prints a vector."""
    numbers = pc.split_pattern(pc.utf8_trim(pa.array(strings, pa.string()), "[] \t\r\n"), ",")
    widths = pc.list_value_length(numbers).to_numpy(zero_copy_only=False)
    try:
        values = pc.utf8_trim_whitespace(numbers.flatten()).cast(pa.float32())
    except pa.ArrowInvalid:
        if len(strings) > 1:  # find the one
            for row, each in enumerate(strings):
                try:
                    of_strings([each])
                except Unusable as error:
                    raise Unusable(row, str(error)) from error
        raise Unusable(0, f"is {strings[0][:40]!r}, where numbers like [0.1, 0.2] were expected") from None
    return _rows(values.to_numpy(), widths)


def of_postgres(values: Sequence[bytes], type_: str) -> Matrix:
    """The vectors of PostgreSQL's binary answers; `type_` is one of `POSTGRES_TYPES`."""
    header, value = _POSTGRES[type_]
    start, step = np.dtype(header).itemsize, np.dtype(value).itemsize
    # An array with a null in it is shorter by the bytes of a value, which its header tells from a shorter array.
    for row, each in enumerate(values):
        if header is _ARRAY and (
            len(each) < start or np.frombuffer(each, header, 1)[["axes", "nulls"]].item() != (1, 0)
        ):
            raise Unusable(row, "is an empty array, has nulls in it or more than one dimension")
    widths = np.array([(len(each) - start) // step for each in values], dtype=np.int64)
    _check_widths(widths)
    width = int(widths[0]) if len(widths) else 0
    found = np.frombuffer(b"".join(values), np.dtype([("header", header), ("values", value, (width,))]))["values"]
    return _narrow(found["value"] if found.dtype.names else found)


def _rows(values: NDArray[Any], widths: NDArray[np.integer]) -> Matrix:
    _check_widths(widths)
    return _narrow(values).reshape(len(widths), -1 if len(widths) else 0)


def _check_widths(widths: NDArray[np.integer]) -> None:
    if len(odd := np.flatnonzero(widths != widths[:1])):
        raise Unusable(int(odd[0]), f"holds {widths[odd[0]]} numbers where rows before hold {widths[0]}")
    if len(widths) and widths[0] == 0:
        raise Unusable(0, "holds no numbers")


def _narrow(values: NDArray[Any]) -> Matrix:
    """float16 as it is, anything else as float32, in this machine's byte order; what is too large becomes infinite."""
    with np.errstate(over="ignore"):
        return values.astype(np.float16 if values.dtype.itemsize == 2 else np.float32, copy=False)
