"""Instants that Arrow has at an offset from UTC (+05:30): Polars takes names of time zones only. Reading frames does not belong here."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow as pa


def in_named_zones(table: "pa.Table") -> "pa.Table":
    """A table that Polars can take: instants at an offset, which is no name of a time zone, are in UTC."""
    import pyarrow as pa

    for position, column in enumerate(table.schema):
        if is_at_offset(column.type):
            table = table.set_column(position, column.name, table.column(position).cast(pa.timestamp(column.type.unit, "UTC")))
    return table


def is_at_offset(dtype: "pa.DataType") -> bool:
    """Whether these are instants whose time zone is an offset from UTC, as +05:30 is."""
    from pyarrow import types

    return types.is_timestamp(dtype) and (dtype.tz or "").startswith(("+", "-"))
