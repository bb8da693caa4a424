"""The bundled series: complete, as the packages have them, at the right instants, with the corporate actions they imply."""

import subprocess
import sys
from datetime import UTC, date, datetime

import polars as pl
import pytest

from featurestore_dagster.calendars import calendar
from featurestore_dagster.features.raw_tables import FX_CANDLES_1H, US_EQUITY_CANDLES_1D, US_EQUITY_CORPORATE_ACTIONS, US_MACRO
from featurestore_dagster.features.sources import SAMPLES
from featurestore_dagster.model.raw_table import Dataset
from featurestore_dagster.model.time import FrozenClock
from featurestore_dagster.settings import Settings
from featurestore_dagster.sources import fetch, samples

LONG_AGO = datetime(1980, 1, 1, tzinfo=UTC)
LATER = datetime(2025, 1, 1, tzinfo=UTC)


def everything(dataset: Dataset) -> pl.DataFrame:
    return samples.fetch(dataset, LONG_AGO, LATER, clock=FrozenClock(LATER))


@pytest.mark.parametrize("dataset", SAMPLES.datasets, ids=lambda dataset: dataset.name)
def test_rows_have_the_canonical_form(dataset: Dataset) -> None:
    rows = everything(dataset)
    expected = {name: dtype for name, dtype in dataset.table.schema.items() if name != "ingested_at"}
    assert dict(rows.schema) == expected
    assert rows.equals(rows.sort(dataset.table.identity))
    assert not rows.select(dataset.table.identity).is_duplicated().any()
    nullable = {column.name for column in dataset.table.all_columns if column.nullable}
    assert {name for name in rows.columns if rows[name].null_count()} <= nullable
    assert rows["known_at"].equals(rows["event_timestamp"])
    assert set(rows["known_at_basis"]) == {"assumed"}
    assert set(rows["source"]) == {"samples"}


def test_listed_symbols_have_a_bar_in_every_session_and_nothing_else() -> None:
    exchange = calendar("XNYS")
    rows = everything(US_EQUITY_CANDLES_1D)
    listings = SAMPLES.listings[US_EQUITY_CANDLES_1D.name]
    assert set(rows["symbol"]) == {listing.symbol for listing in listings}
    for listing in listings:
        assert listing.last is not None
        closes = exchange.sessions(listing.first, listing.last)["closes"]
        assert rows.filter(symbol=listing.symbol)["event_timestamp"].to_list() == closes.to_list()


def test_macro_listings_begin_and_end_with_the_data() -> None:
    rows = everything(US_MACRO)
    sessions = rows.with_columns(session=calendar("XNYS").session_of(rows["event_timestamp"]))
    spans = sessions.group_by("series_id").agg(first=pl.col("session").min(), last=pl.col("session").max())
    listed = {(listing.symbol, listing.first, listing.last) for listing in SAMPLES.listings[US_MACRO.name]}
    assert set(spans.rows()) == listed


def test_values_are_those_that_the_packages_load() -> None:
    from arch.data import core_cpi, default, nasdaq, sp500, vix, wti

    bars = everything(US_EQUITY_CANDLES_1D)
    fields = {"Open": "open", "High": "high", "Low": "low", "Close": "close", "Adj Close": "adjusted_close", "Volume": "volume"}
    for symbol, module in (("SPX", sp500), ("IXIC", nasdaq)):
        loaded, ours = module.load(), bars.filter(symbol=symbol)
        for theirs, field in fields.items():
            assert ours[field].to_list() == loaded[theirs].to_list()
    macro = everything(US_MACRO)
    for series, module, column in (
        ("VIXCLS", vix, "vix"),
        ("DCOILWTICO", wti, "DCOILWTICO"),
        ("BAA", default, "BAA"),
        ("CPILFESL", core_cpi, "CPILFESL"),
    ):
        ours = macro.filter(series_id=series).sort("observation_date")
        loaded = module.load()[column].dropna().tail(ours.height)
        assert ours["value"].to_list() == loaded.to_list()
        assert ours["observation_date"].to_list() == [stamp.date() for stamp in loaded.index]


def test_window_excludes_its_start_includes_its_end_and_ends_now() -> None:
    half_day = datetime(2018, 12, 24, 18, tzinfo=UTC)
    day_before = datetime(2018, 12, 21, 21, tzinfo=UTC)
    clock = FrozenClock(LATER)
    rows = samples.fetch(US_EQUITY_CANDLES_1D, day_before, half_day, clock=clock)
    assert rows.select("symbol", "event_timestamp").rows() == [("IXIC", half_day), ("SPX", half_day)]
    before_the_close = FrozenClock(datetime(2018, 12, 24, 17, 59, tzinfo=UTC))
    assert samples.fetch(US_EQUITY_CANDLES_1D, day_before, half_day, clock=before_the_close).is_empty()


def test_corporate_actions_are_the_known_ones() -> None:
    actions = everything(US_EQUITY_CORPORATE_ACTIONS)
    splits = actions.filter(action="split").select("symbol", pl.col("event_timestamp").dt.date(), "ratio", "cash_amount").rows()
    assert splits == [
        ("AAPL", date(2000, 6, 21), 2.0, None),
        ("AAPL", date(2005, 2, 28), 2.0, None),
        ("MSFT", date(2003, 2, 18), 2.0, None),
    ]
    paid = {
        (symbol, day): cash
        for symbol, day, cash in actions.filter(action="dividend")
        .select("symbol", pl.col("event_timestamp").dt.date(), "cash_amount")
        .rows()
    }
    assert {key: paid[key] for key in [("AAPL", date(2012, 8, 9)), ("MSFT", date(2004, 11, 15)), ("MSFT", date(2003, 2, 19))]} == {
        ("AAPL", date(2012, 8, 9)): 2.65,
        ("MSFT", date(2004, 11, 15)): 3.08,
        ("MSFT", date(2003, 2, 19)): 0.08,
    }
    assert pl.Series(paid.values()).is_between(0.08, 3.08).all()
    assert {symbol: sum(1 for paying, _ in paid if paying == symbol) for symbol in samples.STOCKS} == {
        "AAPL": 3,
        "MSFT": 37,
        "IBM": 52,
        "GOOG": 0,
        "FB": 0,
    }
    opens = calendar("XNYS").table["opens"]
    assert actions["event_timestamp"].is_in(opens.implode()).all()


@pytest.mark.parametrize("symbol", samples.STOCKS)
def test_corporate_actions_explain_the_whole_vendor_adjustment(symbol: str) -> None:
    bars = everything(US_EQUITY_CANDLES_1D).filter(symbol=symbol).with_columns(day=pl.col("event_timestamp").dt.date())
    actions = everything(US_EQUITY_CORPORATE_ACTIONS).filter(symbol=symbol).with_columns(day=pl.col("event_timestamp").dt.date())
    joined = bars.join(actions.select("day", "ratio", "cash_amount"), on="day", how="left", maintain_order="left")
    step = pl.coalesce(pl.col("ratio"), 1 + pl.col("cash_amount") / pl.col("close"), 1.0)
    rebuilt = joined.with_columns(factor=step.cum_prod(), vendor=pl.col("adjusted_close") / pl.col("close"))
    error = (rebuilt["factor"] / rebuilt["factor"][-1]) / (rebuilt["vendor"] / rebuilt["vendor"][-1]) - 1
    assert error.abs().max() < 1e-8


def test_macro_values_are_known_when_they_are_usually_released() -> None:
    macro = everything(US_MACRO)

    def release(series: str, observed: date) -> datetime:
        return macro.filter(series_id=series, observation_date=observed)["event_timestamp"].item()

    assert release("VIXCLS", date(2018, 2, 5)) == datetime(2018, 2, 6, 13, 15, tzinfo=UTC)
    assert release("VIXCLS", date(2018, 12, 21)) == datetime(2018, 12, 24, 13, 15, tzinfo=UTC)
    assert release("VIXCLS", date(2018, 12, 24)) == datetime(2018, 12, 26, 13, 15, tzinfo=UTC)
    assert release("BAA", date(2018, 8, 1)) == datetime(2018, 9, 4, 13, 15, tzinfo=UTC)
    assert release("CPILFESL", date(2018, 11, 1)) == datetime(2018, 12, 15, 13, 30, tzinfo=UTC)
    assert macro.filter(series_id="VIXCLS").height == 1259
    assert (macro["event_timestamp"].dt.date() > macro["observation_date"]).all()


@pytest.mark.parametrize(("package", "dataset"), [("bokeh_sampledata", "US_EQUITY_CANDLES_1D"), ("arch", "US_MACRO")])
def test_a_missing_package_is_named_with_its_remedy(package: str, dataset: str) -> None:
    program = f"""
import sys
sys.modules[{package!r}] = None
from datetime import UTC, datetime
from featurestore_dagster.errors import ConfigurationError
from featurestore_dagster.features import raw_tables
from featurestore_dagster.model.time import SystemClock
from featurestore_dagster.sources import samples
assert "pandas" not in sys.modules
try:
    samples.fetch(raw_tables.{dataset}, datetime(2000, 1, 1, tzinfo=UTC), datetime(2001, 1, 1, tzinfo=UTC), clock=SystemClock())
except ConfigurationError as error:
    print(error)
"""
    message = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert message.strip() == (
        f"the samples need the package {package}, which is not installed; run: pip install featurestore-dagster[samples]"
    )


def test_a_dataset_without_samples_gets_none_of_them(tmp_path) -> None:
    rows = fetch(FX_CANDLES_1H, LONG_AGO, LATER, settings=Settings(data_folder=tmp_path), clock=FrozenClock(LATER))
    assert rows.is_empty()
    assert list(rows.columns) == [name for name in FX_CANDLES_1H.table.schema if name != "ingested_at"]
