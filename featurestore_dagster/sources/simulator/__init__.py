"""A deterministic market for load and fault tests only: every row says `source='simulator'` and carries SIMULATED.

It is no source of the catalogue; a test or a benchmark hands `Simulator.fetch` to the pipeline. Judging its rows does not belong here.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl

from featurestore_dagster.errors import ConfigurationError
from featurestore_dagster.features.raw_tables import CANDLES, COMPANY_FACTS, CORPORATE_ACTIONS, EVENTS, QUOTES
from featurestore_dagster.model.raw_table import Dataset
from featurestore_dagster.model.source import Listing, Source
from featurestore_dagster.model.time import Clock, Timeframe
from featurestore_dagster.settings import Settings
from featurestore_dagster.sources.simulator.daily import Paths, action_rows, paths
from featurestore_dagster.sources.simulator.faults import NO_FAULTS, Fault, bar_rows, wrong_unit_sessions
from featurestore_dagster.sources.simulator.firms import event_rows, filing_rows
from featurestore_dagster.sources.simulator.intraday import Bars, minute_bars, quote_rows
from featurestore_dagster.sources.simulator.simulation import SOURCE, VERSION, Simulation, batches, canonical

__all__ = ["SOURCE", "VERSION", "Fault", "Simulation", "Simulator", "content_hash"]

WRONG_UNIT_DIVISOR = 1000
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Simulator:
    """Rows of a simulated market, as `pipeline.publication.Fetch` wants them.

    Raises:
        ConfigurationError: The environment is production.
    """

    simulation: Simulation
    settings: Settings
    clock: Clock

    def __post_init__(self) -> None:
        """Refuse to run where its rows could be taken for a market."""
        if self.settings.environment == "production":
            raise ConfigurationError(
                "the simulator is for load and fault tests: FEATURESTORE_ENVIRONMENT=production; allowed: development, test"
            )

    def fetch(self, dataset: Dataset, start: datetime, end: datetime, symbols: Sequence[str] | None = None) -> pl.DataFrame:
        """Rows with start < event_timestamp <= end that are known by now, for `symbols` (default: all).

        Returns:
            Canonical columns but `ingested_at`, sorted by identity and known_at. A session in the wrong unit comes with it as it is: its
            event times are far in the past.

        Raises:
            ConfigurationError: A dataset that is not simulated: candles of another timeframe than 1m and 1d, macro series, positions.
        """
        return pl.concat([rows for rows, _ in self.batches(dataset, start, end, symbols)]).sort(
            *dataset.table.identity, "known_at", maintain_order=True
        )

    def faults(self, dataset: Dataset, start: datetime, end: datetime, symbols: Sequence[str] | None = None) -> pl.DataFrame:
        """The truth table `sim_faults` for the same arguments as `fetch`: symbol, kind (`Fault`), incident, event_timestamp.

        One line per bar that a fault touches, named by its true bar end, whether or not it arrived; `incident` tells faults of one symbol
        and kind apart. A session in the wrong unit is one line with symbol "" and the session's close.
        """
        return pl.concat([truth for _, truth in self.batches(dataset, start, end, symbols)]).unique(maintain_order=True)

    def batches(
        self, dataset: Dataset, start: datetime, end: datetime, symbols: Sequence[str] | None = None
    ) -> Iterator[tuple[pl.DataFrame, pl.DataFrame]]:
        """Rows and faults of 500 symbols at a time, ascending: what `fetch` and `faults` join."""
        for chosen in batches(sorted(self.simulation.symbols if symbols is None else symbols)):
            rows, truth = self._rows(dataset, paths(self.simulation, chosen, dataset.calendar), start, end)
            known = pl.col("known_at") <= self.clock.now()
            yield canonical(rows, dataset).filter(known), truth

    def source(self, *datasets: Dataset) -> Source:
        """The declaration of these datasets as filled by the simulator, for a catalogue of a test."""
        listings: list[Listing] = []
        for chosen in batches(self.simulation.symbols):
            found = paths(self.simulation, chosen, datasets[0].calendar)
            sessions = found.sessions["session"].to_list()
            listings += [Listing(s, sessions[a], sessions[b]) for s, a, b in zip(found.symbols, found.first, found.last, strict=True)]
        description = "A simulated market, for load and fault tests only"
        return Source(SOURCE, description, datasets=datasets, listings={dataset.name: tuple(listings) for dataset in datasets})

    def _rows(self, dataset: Dataset, found: Paths, start: datetime, end: datetime) -> tuple[pl.DataFrame, pl.DataFrame]:
        """Rows with start < event time <= end, times in microseconds, and the faults among them."""
        within = pl.col("event_timestamp").cast(pl.Int64).is_between(_microseconds(start), _microseconds(end), closed="right")
        if dataset.table == CANDLES:
            return self._bars(dataset, found, within, start, end)
        if dataset.table == CORPORATE_ACTIONS:
            return action_rows(found).filter(within), NO_FAULTS
        if dataset.table == COMPANY_FACTS:
            return filing_rows(self.simulation, found).filter(within), NO_FAULTS
        if dataset.table == EVENTS:
            first, last = max(start.date(), self.simulation.first), min(end.date(), self.simulation.last)
            return event_rows(self.simulation, found, first, last).filter(within), NO_FAULTS
        if dataset.table == QUOTES:
            parts = [quote_rows(self.simulation, found, position) for position in _touched(found, start, end)]
            nothing = pl.DataFrame(schema={"symbol": pl.String, "bids": pl.String, "asks": pl.String, "event_timestamp": pl.Int64})
            return pl.concat([nothing, *parts]).filter(within), NO_FAULTS
        raise ConfigurationError(
            f"dataset {dataset.name}: table {dataset.table.name} is not simulated; allowed: candles, quotes, events, company_facts, "
            "corporate_actions"
        )

    def _bars(self, dataset: Dataset, found: Paths, within: pl.Expr, start: datetime, end: datetime) -> tuple[pl.DataFrame, pl.DataFrame]:
        if dataset.timeframe is Timeframe.ONE_DAY:
            nothing = np.full_like(found.close, np.nan)
            bars = Bars(found.closes, found.open, found.high, found.low, found.close, found.volume, nothing)
            parts = [bar_rows(self.simulation, dataset, found.symbols, bars, found.listed, 0)]
        elif dataset.timeframe is Timeframe.ONE_MINUTE:
            parts = []
            for position in _touched(found, start, end):
                bars, listed = minute_bars(self.simulation, found, position), found.listed[:, [position]]
                ordinal = found.sessions["session"][position].toordinal()
                everywhere = np.broadcast_to(listed, bars.close.shape)
                parts.append(bar_rows(self.simulation, dataset, found.symbols, bars, everywhere, ordinal))
        else:
            raise ConfigurationError(f"dataset {dataset.name}: {dataset.timeframe} bars are not simulated; allowed: 1m, 1d")
        columns = {name: dtype for name, dtype in CANDLES.schema.items() if name in ("symbol", "timeframe", *_NUMBERS)}
        empty = pl.DataFrame(schema={**columns, "event_timestamp": pl.Int64, "known_at": pl.Int64})
        rows = pl.concat([empty, *(part.select(empty.columns) for part, _ in parts)]).filter(within)
        truth = pl.concat([NO_FAULTS, *(part for _, part in parts)]).filter(within)
        return self._in_wrong_unit(dataset, found, rows, truth, within)

    def _in_wrong_unit(
        self, dataset: Dataset, found: Paths, rows: pl.DataFrame, truth: pl.DataFrame, within: pl.Expr
    ) -> tuple[pl.DataFrame, pl.DataFrame]:
        wrong = wrong_unit_sessions(self.simulation, dataset, found.sessions)
        if not wrong:
            return rows, truth
        sessions = found.sessions[wrong]
        event = pl.col("event_timestamp")
        inside = pl.any_horizontal(
            event.is_between(_microseconds(opens), _microseconds(closes), closed="right")
            for opens, closes in sessions.select("opens", "closes").iter_rows()
        )
        told = sessions.select(
            pl.lit("").alias("symbol"),
            pl.lit(Fault.WRONG_UNIT.value).alias("kind"),
            pl.col("closes").cast(pl.Int64).alias("incident"),
            pl.col("closes").alias("event_timestamp"),
        )
        return rows.with_columns(pl.when(inside).then(event // WRONG_UNIT_DIVISOR).otherwise(event)), pl.concat(
            [truth, told.filter(within)]
        )


_NUMBERS = ("open", "high", "low", "close", "volume", "trade_count")


def content_hash(frames: Iterator[pl.DataFrame] | Sequence[pl.DataFrame]) -> str:
    """sha256 over rows in the order given, as text with full precision."""
    digest = hashlib.sha256()
    for frame in frames:
        digest.update(frame.write_csv(include_header=False).encode())
    return digest.hexdigest()


def _touched(found: Paths, start: datetime, end: datetime) -> list[int]:
    """Positions of sessions with instants in (start, end]."""
    low, high = _microseconds(start), _microseconds(end)
    return [int(position) for position in np.flatnonzero((found.closes > low) & (found.opens < high))]


def _microseconds(instant: datetime) -> int:
    return (instant - EPOCH) // timedelta(microseconds=1)
