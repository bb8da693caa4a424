"""Files to rows: real data unchanged, every dialect read alike, every malformed file refused by line and column.

Two tables of malformed files, which belong beside what is accepted, make it longer than most.
"""

import csv
import io
import re
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from featurestore_dagster.calendars import calendar
from featurestore_dagster.errors import MalformedDataError
from featurestore_dagster.features.raw_tables import CANDLES, FX_CANDLES_1H, US_EQUITY_CANDLES_1D, US_EQUITY_CORPORATE_ACTIONS, US_MACRO
from featurestore_dagster.model.raw_table import Dataset
from featurestore_dagster.model.time import FrozenClock, Timeframe
from featurestore_dagster.sources import samples
from featurestore_dagster.sources.files.mapping import FileMapping
from featurestore_dagster.sources.files.parsing import parse

RECEIVED_AT = datetime(2018, 12, 31, 22, tzinfo=UTC)

EURUSD: dict[str, Any] = {
    "columns": {"time": "event_timestamp", "o": "open", "h": "high", "l": "low", "c": "close", "v": "volume"},
    "constants": {"symbol": "EURUSD", "timeframe": "1h"},
    "timestamp_unit": "iso",
    "timezone": "UTC",
    "label": "bar_start",
}
HEADER = "time,o,h,l,c,v\n"
BAR = "2018-01-02 10:00,1.2,1.21,1.19,1.205,100\n"

Parse = Callable[..., pl.DataFrame]


@pytest.fixture
def parsed(tmp_path: Path) -> Parse:
    """Write the content to a file and parse it."""

    def parsed(
        content: bytes | str, mapping: dict[str, Any] = EURUSD, dataset: Dataset = FX_CANDLES_1H, name: str = "bars.csv"
    ) -> pl.DataFrame:
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return parse(path, name, dataset, FileMapping.model_validate(mapping), received_at=RECEIVED_AT, maximum_bytes=10_000_000)

    return parsed


def parquet(frame: pl.DataFrame) -> bytes:
    buffer = io.BytesIO()
    frame.write_parquet(buffer)
    return buffer.getvalue()


def test_real_hourly_bars_come_out_as_they_went_in(parsed: Parse) -> None:
    from backtesting.test import EURUSD as BARS

    rows = parsed(
        BARS.to_csv(),
        {**EURUSD, "columns": {"": "event_timestamp", "Open": "open", "High": "high", "Low": "low", "Close": "close", "Volume": "volume"}},
    )
    assert dict(rows.schema) == {name: dtype for name, dtype in CANDLES.schema.items() if name != "ingested_at"}
    for field in ("Open", "High", "Low", "Close", "Volume"):
        assert rows[field.lower()].to_list() == BARS[field].to_list()
    starts = [stamp.to_pydatetime().replace(tzinfo=UTC) for stamp in BARS.index]
    assert rows["event_timestamp"].to_list() == [start + timedelta(hours=1) for start in starts]
    assert set(rows.select("dataset", "symbol", "timeframe", "source", "flags").rows()) == {("fx_candles_1h", "EURUSD", "1h", "files", 0)}


@pytest.mark.parametrize("symbol", ["AAPL", "GOOG"])
def test_real_daily_bars_by_session_equal_the_samples(parsed: Parse, symbol: str) -> None:
    from bokeh_sampledata import stocks

    ours = samples.fetch(US_EQUITY_CANDLES_1D, datetime(1999, 1, 1, tzinfo=UTC), RECEIVED_AT, clock=FrozenClock(RECEIVED_AT)).filter(
        symbol=symbol
    )
    rows = parsed(
        pl.DataFrame(getattr(stocks, symbol)).write_csv(),
        {
            "columns": {"date": "event_timestamp", "adj_close": "adjusted_close"}
            | {n: n for n in ("open", "high", "low", "close", "volume")},
            "constants": {"symbol": symbol},
            "timestamp_unit": "iso",
            "timezone": "America/New_York",
            "label": "session",
        },
        US_EQUITY_CANDLES_1D,
    )
    assert rows.drop("source").equals(ours.drop("source"))


numbers = st.floats(min_value=1e-6, max_value=1e9, allow_nan=False).map(lambda value: round(value, 6))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    bars=st.lists(st.tuples(numbers, numbers, numbers, numbers, st.one_of(st.none(), numbers)), min_size=1, max_size=20),
    symbol=st.text(st.characters(codec="utf-8", exclude_characters="\x00", exclude_categories=["Cs"]), min_size=1).filter(
        lambda t: t != "-"
    ),
    delimiter=st.sampled_from([",", ";", "\t", "|"]),
    declared=st.booleans(),
    decimal_comma=st.booleans(),
    bom=st.booleans(),
    line_end=st.sampled_from(["\n", "\r\n", "\r"]),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    last_line_ends=st.booleans(),
)
def test_every_dialect_is_read_alike(
    parsed: Parse, bars, symbol, delimiter, declared, decimal_comma, bom, line_end, quoting, last_line_ends
) -> None:
    start = datetime(2018, 1, 2, tzinfo=UTC)
    text = io.StringIO(newline="")
    if {"\r", "\n"} & set(symbol):
        quoting = csv.QUOTE_ALL  # Python's writer leaves a line end that is not its own without quotes, and then it is one
    writer = csv.writer(text, delimiter=delimiter, quoting=quoting, lineterminator=line_end)
    writer.writerow(["symbol", "time", "o", "h", "l", "c", "v"])
    for position, (*prices, volume) in enumerate(bars):
        written = ["-" if value is None else format(value, "f") for value in (*prices, volume)]
        cells = [value.replace(".", ",") if decimal_comma else value for value in written]
        writer.writerow([symbol, int((start + timedelta(hours=position)).timestamp()), *cells])
    content = text.getvalue() if last_line_ends else text.getvalue().removesuffix(line_end)
    mapping = {
        **EURUSD,
        "columns": {"symbol": "symbol", **EURUSD["columns"]},
        "constants": {},
        "timestamp_unit": "s",
        "timezone": None,
        "label": "bar_end",
        "decimal_comma": decimal_comma,
        "null_tokens": ["-"],
        "delimiter": delimiter if declared or delimiter in "\t|" else None,
    }
    rows = parsed((b"\xef\xbb\xbf" if bom else b"") + content.encode(), mapping)
    assert rows.select("symbol", "event_timestamp", "open", "high", "low", "close", "volume").rows() == [
        (symbol, start + timedelta(hours=position), *values) for position, values in enumerate(bars)
    ]


MILLISECONDS = str(int(datetime(2018, 1, 2, 10, tzinfo=UTC).timestamp() * 1000))

REFUSED_TEXTS: dict[str, tuple[bytes | str, dict[str, Any], str]] = {
    "0 bytes": (b"", {}, "bars.csv: it has no header line"),
    "header only": (HEADER, {}, "it has columns and no rows"),
    "not UTF-8": (
        HEADER.encode() + b"2018-01-02 10:00,1\xff,1,1,1,1\n",
        {},
        "it is not UTF-8 (byte 0xff cannot be decoded); export it as UTF-8",
    ),
    "UTF-16": ((HEADER + BAR).encode("utf-16"), {}, "it is not UTF-8 (byte 0xff"),
    "truncated last line": (
        HEADER + BAR + "2018-01-02 11:00,1.2,1.2",
        {},
        "line 3 has 3 fields and the header 6, column 'l' is the first without a value: the file is truncated",
    ),
    "truncated inside quotes": (HEADER + BAR + '2018-01-02 11:00,"1.2', {}, "line 3: unexpected end of data"),
    "too many fields": (HEADER + BAR + "2018-01-02 11:00,1,234,1,1,1,1\n", {}, "line 3 has 7 fields and the header 6"),
    "duplicate header": ("time,o,h,l,c,c\n" + BAR, {}, "line 1, read with the delimiter ',': column 'c' is there twice"),
    "unknown column": (
        "time,o,h,l,c,v,vwap\n2018-01-02 10:00,1,1,1,1,1,1\n",
        {},
        "column 'vwap' is not in the mapping; map it under columns, or name it under ignore",
    ),
    "missing column": ("time,o,h,l,c\n2018-01-02 10:00,1,1,1,1\n", {}, "column 'v' is missing; found 'time', 'o', 'h', 'l', 'c'"),
    "other delimiter": ((HEADER + BAR).replace(",", ";"), {"delimiter": ","}, "read with the delimiter ',': column 'time', 'o', 'h'"),
    "text for a number": (
        HEADER + BAR + "2018-01-02 11:00,1,1,high,1,1\n2018-01-02 12:00,1,1,x,1,1\n",
        {},
        (
            "line 3, column 'l': 'high' is not a number with a decimal point and no thousands separator (1234.5); "
            "for commas set decimal_comma: true (and 1 more)"
        ),
    ),
    "undeclared decimal comma": (
        HEADER.replace(",", ";") + "2018-01-02 10:00;1,2;1;1;1;1\n",
        {},
        "line 2, column 'o': '1,2' is not a number",
    ),
    "thousands separator": (
        HEADER.replace(",", ";") + "2018-01-02 10:00;1.234,5;1;1;1;1\n",
        {"decimal_comma": True},
        "line 2, column 'o': '1.234,5' is not a number with a decimal comma and no thousands separator",
    ),
    "point despite decimal comma": (HEADER.replace(",", ";") + "2018-01-02 10:00;1.2;1;1;1;1\n", {"decimal_comma": True}, "'1.2' is not"),
    "no timestamp": (HEADER + BAR + ",1,1,1,1,1\n", {}, "line 3, column 'time': a row without a timestamp"),
    "no such date": (HEADER + "2018-02-30 10:00,1,1,1,1,1\n", {}, "line 2, column 'time': '2018-02-30 10:00' is no timestamp such as"),
    "American date": (HEADER + "02/01/2018 10:00,1,1,1,1,1\n", {}, "'02/01/2018 10:00' is no timestamp such as 2018-12-31T21:00:00Z"),
    "naive": (
        HEADER + "2018-01-02 10:00Z,1,1,1,1,1\n" + BAR,
        {"timezone": None},
        "line 3, column 'time': 2018-01-02 10:00 has no time zone; declare the zone of the file as timezone in the mapping",
    ),
    "nonexistent local time": (
        HEADER + BAR + "2018-03-11 02:30,1,1,1,1,1\n",
        {"timezone": "America/New_York"},
        "line 3, column 'time': 2018-03-11 02:30 does not exist in America/New_York",
    ),
    "ambiguous local time": (
        HEADER + BAR + "2018-11-04 01:30,1,1,1,1,1\n",
        {"timezone": "America/New_York"},
        "line 3, column 'time': 2018-11-04 01:30 exists twice in America/New_York",
    ),
    "ms taken for s": (
        HEADER + f"{MILLISECONDS},1,1,1,1,1\n",
        {"timestamp_unit": "s", "timezone": None},
        (
            f"line 2, column 'time': {MILLISECONDS} in s is outside 1990-01-01 to 2019-01-01 22:00 UTC; "
            "plausible is timestamp_unit: ms (2018-01-02 10:00:00 UTC)"
        ),
    ),
    "s taken for ms": (
        HEADER + f"{MILLISECONDS[:-3]},1,1,1,1,1\n",
        {"timestamp_unit": "ms", "timezone": None},
        "plausible is timestamp_unit: s (2018-01-02 10:00",
    ),
    "no unit fits": (HEADER + "1,1,1,1,1,1\n", {"timestamp_unit": "s", "timezone": None}, "no other unit makes it plausible"),
    "text for an epoch": (HEADER + BAR, {"timestamp_unit": "ms", "timezone": None}, "is not a whole number of ms since 1970-01-01 UTC"),
    "beyond 64 bits": (
        HEADER + "99999999999999999999,1,1,1,1,1\n",
        {"timestamp_unit": "ns", "timezone": None},
        "is not a whole number of ns",
    ),
    "months ahead": (
        HEADER + BAR + "2019-10-27 10:00,1,1,1,1,1\n",
        {},
        "line 3, column 'time': 2019-10-27 10:00 is outside 1990-01-01 to 2019-01-01",
    ),
    "before 1990": (HEADER + "1970-01-02 10:00,1,1,1,1,1\n", {}, "1970-01-02 10:00 is outside 1990-01-01"),
    "empty key": (
        "s,time,o,h,l,c,v\n,2018-01-02 10:00,1,1,1,1,1\n",
        {"columns": {"s": "symbol", **EURUSD["columns"]}, "constants": {}},
        "line 2, column 's': a key without a value",
    ),
    "other timeframe": (
        "t,time,o,h,l,c,v\n4h,2018-01-02 10:00,1,1,1,1,1\n",
        {"columns": {"t": "timeframe", **EURUSD["columns"]}, "constants": {"symbol": "EURUSD"}},
        "line 2, column 't': '4h', but fx_candles_1h holds 1h bars",
    ),
}


@pytest.mark.parametrize(("content", "changes", "message"), REFUSED_TEXTS.values(), ids=REFUSED_TEXTS.keys())
def test_a_malformed_csv_is_refused_by_line_and_column(parsed: Parse, content: bytes | str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(MalformedDataError, match=re.escape(message)) as refusal:
        parsed(content, {**EURUSD, **changes})
    assert str(refusal.value).startswith("bars.csv: ")
    assert str(refusal.value).endswith("; nothing of the file was taken")


FRAME = pl.DataFrame({"time": [datetime(2018, 1, 2, 10)], "o": [1.2], "h": [1.3], "l": [1.1], "c": [1], "v": [10]})  # noqa: DTZ001 - naive on purpose

REFUSED_FRAMES: dict[str, tuple[bytes, dict[str, Any], str]] = {
    "garbage": (b"PAR1 is not enough", {}, "it is no readable Parquet file"),
    "truncated": (parquet(FRAME)[:-20], {}, "it is no readable Parquet file"),
    "no rows": (parquet(FRAME.clear()), {}, "it has columns and no rows"),
    "text for a number": (parquet(FRAME.with_columns(c=pl.lit("high"))), {}, "row 1, column 'c': 'high' is not a number"),
    "boolean for a number": (
        parquet(FRAME.with_columns(c=pl.lit(value=True))),
        {},
        "column 'c' has the type Boolean, but Float64 is needed",
    ),
    "naive": (parquet(FRAME), {"timezone": None}, "row 1, column 'time': 2018-01-02 10:00:00 has no time zone"),
    "null time": (parquet(pl.concat([FRAME, FRAME.with_columns(time=None)])), {}, "row 2, column 'time': a row without a timestamp"),
    "number for a time": (
        parquet(FRAME.with_columns(time=pl.lit(5.0))),
        {},
        "column 'time' has the type Float64, but the mapping declares",
    ),
    "time for an epoch": (
        parquet(FRAME),
        {"timestamp_unit": "s", "timezone": None},
        "column 'time' has the type Datetime(time_unit='us', time_zone=None), but Int64",
    ),
    "too large": (
        parquet(pl.select(pl.repeat(0, 2_000_000).alias("o"))),
        {},
        "it declares 2000000 rows of 1 columns, 16000000 bytes or more; allowed are 10000000: split it",
    ),
    "extra column": (parquet(FRAME.with_columns(x=1)), {}, "its schema: column 'x' is not in the mapping"),
}


@pytest.mark.parametrize(("content", "changes", "message"), REFUSED_FRAMES.values(), ids=REFUSED_FRAMES.keys())
def test_a_malformed_parquet_file_is_refused(parsed: Parse, content: bytes, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(MalformedDataError, match=re.escape(message)):
        parsed(content, {**EURUSD, **changes}, name="bars.parquet")


@pytest.mark.parametrize(
    ("times", "changes"),
    [
        (pl.Series([datetime(2018, 7, 2, 10)]), {"timezone": "Europe/Berlin"}),  # noqa: DTZ001
        (pl.Series([datetime(2018, 7, 2, 8)], dtype=pl.Datetime("ns")), {}),  # noqa: DTZ001
        (pl.Series([datetime(2018, 7, 2, 8, tzinfo=UTC)]).dt.convert_time_zone("Asia/Tokyo"), {"timezone": None}),
        (pl.Series([1530518400]), {"timestamp_unit": "s", "timezone": None}),
        (pl.Series([1530518400_000_000_000]), {"timestamp_unit": "ns", "timezone": None}),
        (pl.Series(["2018-07-02T10:00:00.000+02:00"]), {"timezone": None}),
        (pl.Series(["2018-07-02 03:00:00-0500"]), {}),
        (pl.Series(["2018-07-02 04:00"]), {"timezone": "America/New_York"}),
    ],
    ids=["naive", "nanoseconds", "zoned", "s", "ns", "offset", "offset and zone", "text"],
)
def test_the_same_instant_in_every_notation(parsed: Parse, times: pl.Series, changes: dict[str, Any]) -> None:
    rows = parsed(parquet(FRAME.with_columns(time=times)), {**EURUSD, **changes}, name="bars.parquet")
    assert rows["event_timestamp"].item() == datetime(2018, 7, 2, 9, tzinfo=UTC)


def test_bad_values_are_left_for_the_audit(parsed: Parse) -> None:
    rows = parsed(HEADER + "2018-01-02 10:00,NaN,-inf,,-1,Infinity\n" + BAR + BAR)
    values = rows.select("open", "high", "low", "close", "volume").row(0)
    assert str(values) == "(nan, -inf, None, -1.0, inf)"
    assert rows[1].equals(rows[2])


@pytest.mark.parametrize("symbol", ['O"Brien', "'; DROP TABLE raw.candles; --", "EUR/USD", "ÉURO"])
def test_strange_symbols_are_data(parsed: Parse, symbol: str) -> None:
    quoted = '"' + symbol.replace('"', '""') + '"'
    mapping = {**EURUSD, "columns": {"s": "symbol", **EURUSD["columns"]}, "constants": {}}
    assert parsed(f"s,{HEADER}{quoted},{BAR}", mapping)["symbol"].to_list() == [symbol]


def test_ignored_columns_blank_lines_and_absent_nullable_fields(parsed: Parse) -> None:
    mapping = {**EURUSD, "ignore": ["n"]}
    rows = parsed("time,o,h,l,c,v,n\n\n2018-01-02 10:00,1,1,1,1,1,x\n\n", mapping)
    assert rows.height == 1
    assert rows["adjusted_close"].to_list() == [None]


def test_the_last_short_bar_of_a_session_ends_at_the_close(parsed: Parse) -> None:
    hourly = Dataset("us_equity_candles_1h", CANDLES, "us_equity", "XNYS", Timeframe.ONE_HOUR, "hourly", timedelta(0), bars=True)
    mapping = {**EURUSD, "timezone": "America/New_York"}
    starts = ["2018-12-24 12:30", "2018-12-24 09:30", "2018-12-26 15:30", "2018-12-26 20:30"]
    rows = parsed(HEADER + "".join(f"{start},1,1,1,1,1\n" for start in starts), mapping, hourly)
    assert [instant.strftime("%d %H:%M") for instant in rows["event_timestamp"]] == ["24 18:00", "24 15:30", "26 21:00", "27 02:30"]


def test_a_session_label_on_a_closed_day_is_off_the_calendar(parsed: Parse) -> None:
    mapping = {**EURUSD, "timezone": "America/New_York", "label": "session", "constants": {"symbol": "AAPL"}}
    event = parsed(HEADER + "2018-12-25,1,1,1,1,1\n", mapping, US_EQUITY_CANDLES_1D)["event_timestamp"].item()
    assert event == datetime(2018, 12, 26, 5, tzinfo=UTC)
    assert event not in calendar("XNYS").table["closes"].to_list()


def test_macro_observations_and_corporate_actions(parsed: Parse) -> None:
    macro = parsed(
        "id,day,value,released\nDGS10,1962-01-02,4.06,1962-01-03 21:15\n",
        {
            "columns": {"id": "series_id", "day": "observation_date", "value": "value", "released": "event_timestamp"},
            "timestamp_unit": "iso",
            "timezone": "America/Chicago",
        },
        US_MACRO,
    )
    assert macro.select("series_id", "observation_date", "value", "event_timestamp").row(0) == (
        "DGS10",
        date(1962, 1, 2),
        4.06,
        datetime(1962, 1, 4, 3, 15, tzinfo=UTC),
    )
    actions = parsed(
        "s,kind,r,ex\nFB,split,3,2018-07-02\n",
        {
            "columns": {"s": "symbol", "kind": "action", "r": "ratio", "ex": "event_timestamp"},
            "timestamp_unit": "iso",
            "timezone": "America/New_York",
            "label": "session",
        },
        US_EQUITY_CORPORATE_ACTIONS,
    )
    assert actions.select("ratio", "cash_amount", "event_timestamp").row(0) == (3.0, None, datetime(2018, 7, 2, 13, 30, tzinfo=UTC))


def test_a_malformed_observation_date_is_refused(parsed: Parse) -> None:
    mapping = {
        "columns": {"day": "observation_date", "value": "value", "released": "event_timestamp"},
        "constants": {"series_id": "DGS10"},
        "timestamp_unit": "iso",
        "timezone": "UTC",
    }
    with pytest.raises(MalformedDataError, match="line 2, column 'day': '2018-13-01' is not a date such as 2018-12-31"):
        parsed("day,value,released\n2018-13-01,1,2018-12-01\n", mapping, US_MACRO)


@pytest.mark.parametrize(
    ("rule", "old", "new"),
    [
        ({}, ("2018-12-30T21:00:00", "assumed"), ("2018-12-31T22:00:00", "observed")),
        ({"known_at": "assumed"}, ("2018-12-30T21:00:00", "assumed"), ("2018-12-31T21:00:00", "assumed")),
        ({"known_at": "assumed", "known_at_lag_seconds": 90}, ("2018-12-30T21:01:30", "assumed"), ("2018-12-31T21:01:30", "assumed")),
        ({"known_at": "observed"}, ("2018-12-31T22:00:00", "observed"), ("2018-12-31T22:00:00", "observed")),
        (
            {"columns": {**EURUSD["columns"], "k": "known_at"}},
            ("2018-12-30T23:00:00", "observed"),
            ("2018-12-31T23:00:00", "observed"),
        ),
    ],
    ids=["default", "assumed", "lag", "observed", "column"],
)
def test_known_at_follows_the_declared_rule(parsed: Parse, rule: dict[str, Any], old: tuple[str, str], new: tuple[str, str]) -> None:
    mapping = {**EURUSD, "label": "bar_end", **({"ignore": ["k"]} if "columns" not in rule else {}), **rule}
    content = "time,o,h,l,c,v,k\n2018-12-30 21:00,1,1,1,1,1,2018-12-30 23:00\n2018-12-31 21:00,1,1,1,1,1,2018-12-31 23:00\n"
    rows = parsed(content, mapping).select(pl.col("known_at").dt.strftime("%Y-%m-%dT%H:%M:%S"), "known_at_basis").rows()
    assert rows == [old, new]
