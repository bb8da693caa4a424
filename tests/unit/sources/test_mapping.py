"""mapping.yaml: refused with what is allowed when it contradicts itself or its dataset."""

import re
from pathlib import Path

import pytest

from featurestore_dagster.errors import ConfigurationError
from featurestore_dagster.features.raw_tables import FX_CANDLES_1H, US_EQUITY_CANDLES_1D, US_MACRO
from featurestore_dagster.model.raw_table import Dataset
from featurestore_dagster.sources.files.mapping import load_mapping

GOOD = """
columns: {time: event_timestamp, o: open, h: high, l: low, c: close}
constants: {symbol: EURUSD, timeframe: 1h}
timestamp_unit: iso
timezone: UTC
label: bar_start
"""

REFUSED = {
    "not YAML": ("columns: [", "is not YAML in UTF-8"),
    "a list": ("- 1", "mapping: Input should be a valid dictionary"),
    "empty": ("", "mapping: Input should be"),
    "unknown key": (
        GOOD + "separator: ;",
        "separator: Extra inputs are not permitted; allowed: columns, constants, ignore, timestamp_unit",
    ),
    "missing key": (GOOD.replace("timestamp_unit: iso", ""), "timestamp_unit: Field required"),
    "unknown unit": (GOOD.replace("iso", "minutes"), "timestamp_unit: Input should be 'iso', 's', 'ms', 'us' or 'ns'"),
    "unknown zone": (GOOD.replace("UTC", "Mars/Base"), "timezone: Value error, 'Mars/Base' is no IANA time zone; write for example UTC"),
    "zone outside the database": (GOOD.replace("UTC", "../etc/passwd"), "is no IANA time zone"),
    "zone of an epoch": (GOOD.replace("iso", "ms"), "timestamp_unit ms counts from 1970-01-01 UTC by definition; remove timezone"),
    "boolean symbol": (GOOD.replace("EURUSD", "ON"), "constants: Value error, symbol: YAML reads a bare ON, NO, yes or true as a boolean"),
    "unknown field": (GOOD.replace("o: open", "o: opening"), "fx_candles_1h has no field opening; allowed: symbol, timeframe, open"),
    "unfilled field": (GOOD.replace(", c: close", ""), "nothing fills close; name a file column under columns"),
    "filled twice": (GOOD.replace("o: open", "o: close"), "filled twice: close"),
    "column and constant": (GOOD.replace("o: open", "o: symbol, oo: open"), "filled twice: symbol"),
    "mapped and ignored": (GOOD + "ignore: [o]", "both mapped and ignored: o"),
    "constant time": (
        GOOD.replace("time: event_timestamp, ", "").replace("{symbol", "{event_timestamp: '2018', symbol"),
        "event_timestamp cannot be a constant",
    ),
    "number for a text": (GOOD.replace("EURUSD", "7"), "constant symbol: 7.0 is no String"),
    "other timeframe": (GOOD.replace("timeframe: 1h", "timeframe: 4h"), "fx_candles_1h holds 1h bars, not 4h"),
    "no label": (GOOD.replace("label: bar_start", ""), "label None does not suit fx_candles_1h; allowed: bar_start or bar_end"),
    "session label of hours": (GOOD.replace("bar_start", "session"), "label session does not suit fx_candles_1h"),
    "session without zone": (GOOD.replace("bar_start", "session").replace("timezone: UTC", ""), "label session needs the timezone"),
    "two rules for known_at": (GOOD.replace("{time", "{k: known_at, time") + "known_at: assumed", "known_at is read from a column"),
    "lag of an arrival": (GOOD + "known_at: observed\nknown_at_lag_seconds: 5", "known_at observed is the arrival"),
    "negative lag": (GOOD + "known_at_lag_seconds: -5", "known_at_lag_seconds: Input should be greater than or equal to 0"),
}


def load(folder: Path, text: str, dataset: Dataset = FX_CANDLES_1H):
    (folder / "mapping.yaml").write_text(text, encoding="utf-8")
    return load_mapping(folder, dataset)


def test_a_good_mapping_loads(tmp_path: Path) -> None:
    mapping = load(tmp_path, GOOD)
    assert mapping.constants == {"symbol": "EURUSD", "timeframe": "1h"}
    assert mapping.null_tokens == {""}
    assert mapping.lag(FX_CANDLES_1H) == FX_CANDLES_1H.latency


@pytest.mark.parametrize(("text", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_a_wrong_mapping_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(message)) as refusal:
        load(tmp_path, text)
    assert str(refusal.value).startswith(f"{tmp_path / 'mapping.yaml'}")


@pytest.mark.parametrize(
    ("dataset", "label", "allowed"),
    [(US_EQUITY_CANDLES_1D, "bar_start", "bar_end or session"), (US_MACRO, "bar_end", "no label or session")],
    ids=["daily", "macro"],
)
def test_labels_suit_the_dataset(tmp_path: Path, dataset: Dataset, label: str, allowed: str) -> None:
    fields = ", ".join(f"{column.name}: {column.name}" for column in dataset.table.columns)
    text = f"columns: {{{fields}, t: event_timestamp}}\ntimestamp_unit: iso\ntimezone: UTC\nlabel: {label}"
    with pytest.raises(ConfigurationError, match=f"label {label} does not suit {dataset.name}; allowed: {allowed}"):
        load(tmp_path, text, dataset)


def test_a_missing_mapping_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigurationError, match=re.escape(f"{tmp_path / 'mapping.yaml'} is missing; write one as docs/how-to/drop-files.md")
    ):
        load_mapping(tmp_path, FX_CANDLES_1H)
