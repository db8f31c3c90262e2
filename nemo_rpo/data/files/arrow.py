"""Arrow batches as plain rows, whatever their columns hold."""

from __future__ import annotations

from typing import Any


def plain_rows(batch: Any) -> list[dict[str, Any]]:
    """The rows of a record batch or table.

    A column with a value that Python has no type for (a date after the year 9999, say) becomes strings, or where Arrow
    cannot spell it either, the integers that stand for it: most often it is a column that nothing here reads.
    """
    try:
        return batch.to_pylist()
    except (ValueError, OverflowError):
        columns = [_values(batch.column(i)) for i in range(batch.num_columns)]
        return [dict(zip(batch.schema.names, row, strict=True)) for row in zip(*columns, strict=True)]


def _values(column: Any) -> list[Any]:
    import pyarrow

    for of in (None, pyarrow.string(), pyarrow.int64()):
        try:
            return (column if of is None else column.cast(of)).to_pylist()
        except (ValueError, OverflowError, NotImplementedError):  # Arrow's own errors are of these kinds
            continue
    return [_value(cell) for cell in column]


def _value(cell: Any) -> Any:
    """The value of a cell; where Python has no type for it, its fields one by one, or the integer behind it."""
    import pyarrow

    try:
        return cell.as_py()
    except (ValueError, OverflowError):
        if isinstance(cell, pyarrow.StructScalar):
            return {name: _value(cell[name]) for name in cell}
        if isinstance(cell, pyarrow.ListScalar | pyarrow.LargeListScalar):
            return [_value(item) for item in cell.values]
        return str(getattr(cell, "value", ""))
