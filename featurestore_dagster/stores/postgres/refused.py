"""Refused rows as the quarantine keeps them: JSON, so that a row of any form fits. Why a row is refused is not decided here."""

import json
import math
from collections.abc import Mapping

import polars as pl

REFUSED_SCHEMA = {"partition_key": pl.String(), "row": pl.String(), "reasons": pl.List(pl.String())}


def row_as_json(row: Mapping[str, object]) -> str:
    """A row as JSON text that Postgres takes as jsonb: NaN and infinities as text, NUL characters replaced."""

    def plain(value: object) -> object:
        if isinstance(value, float) and not math.isfinite(value):
            return str(value)
        return value.replace("\x00", "\ufffd") if isinstance(value, str) else value

    return json.dumps({name: plain(value) for name, value in row.items()}, default=str)


def refused_rows(rows: pl.DataFrame, partition_keys: pl.Series, reasons: pl.Series) -> pl.DataFrame:
    """Columns partition_key, row (JSON text), reasons (list of text), one line per row of `rows`."""
    texts = [row_as_json(row) for row in rows.iter_rows(named=True)]
    return pl.DataFrame({"partition_key": partition_keys, "row": texts, "reasons": reasons}, schema=REFUSED_SCHEMA)
