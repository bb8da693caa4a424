"""Freshness: is the newest value as new as the calendar and the SLO demand? The one function for checks, sensors, exporter and clients.

Reading watermarks and sending alerts do not belong here; nor does any clock: `now` is an argument.

A *watermark* is the greatest event time served so far, so a backfill of old days never moves it. The *next value* is that of the first
bar end after the watermark. It becomes available at bar end + latency and is due at bar end + latency + SLO.

A stream of snapshots that reads nothing but released series has nothing new to say between releases. Its next value is that of the first
bar end at or after the next release of any of them, by the release calendar; or, if that is sooner, it is due when the TTL of the watermark
ends, since from then on nothing is served.

Nothing is owed of a stream that has had values, from the first bar on for which none of its entities is listed any more.

    FRESH    nothing is overdue and the market trades
    CLOSED   nothing is overdue and the market does not trade
    LATE     the next value is overdue: now > due at, the same as lag > SLO
    STALE    overdue, and since it fell due the market has traded for one more SLO; or the watermark's open-market age has reached the TTL
    NEVER    there is no watermark

Lateness is clock time, because the SLO promises clock time after the close too. Staleness is open-market time: LATE becomes STALE only
while the market trades, so no weekend or holiday makes anything stale. Only a newer value ends either.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from enum import StrEnum
from functools import cache

import polars as pl

from featurestore_dagster.calendars import MarketCalendar, calendar
from featurestore_dagster.errors import MalformedDataError, PointInTimeViolation
from featurestore_dagster.features.macro_series import ReleasedSeries, series_of
from featurestore_dagster.features.raw_tables import MACRO_OBSERVATIONS
from featurestore_dagster.features.universe import instruments, listings_of
from featurestore_dagster.model.catalogue import Catalogue
from featurestore_dagster.model.feature_view import FeatureView, Stream
from featurestore_dagster.model.raw_table import UTC_MICROSECONDS
from featurestore_dagster.model.time import Timeframe

CLOCK_SKEW = timedelta(seconds=2)
"""A watermark may be this far ahead of `now`: the tolerance that the audit grants to a bar's end."""


class FreshnessState(StrEnum):
    """Mildest first; FRESH and CLOSED are equally good and never occur at the same instant of one calendar."""

    FRESH = "FRESH"
    CLOSED = "CLOSED"
    LATE = "LATE"
    STALE = "STALE"
    NEVER = "NEVER"

    @property
    def overdue(self) -> bool:
        """Whether a value is owed: what an alert is about."""
        return self in {FreshnessState.LATE, FreshnessState.STALE, FreshnessState.NEVER}


STATES = pl.Enum([state.value for state in FreshnessState])
"""Dtype of a state column; it sorts by severity, mildest first."""


@dataclass(frozen=True)
class Expectation:
    """When the values of one stream are owed.

    `series` are those whose releases oblige it, none where every bar end does. From `ends_at` on nothing is listed any more; None: no end
    is declared.
    """

    calendar: MarketCalendar
    timeframe: Timeframe
    latency: timedelta
    max_lag: timedelta
    ttl: timedelta
    series: tuple[ReleasedSeries, ...] = ()
    ends_at: datetime | None = None


@dataclass(frozen=True)
class Freshness:
    """What is known about one watermark at `now`; all instants UTC.

    `expected_event_timestamp`: the newest bar end that could be available. `due_at`: when the next value must be served (without a
    watermark: when the newest one that is overdue had to be; where nothing is listed any more: when it would have to be). `next_due_at`:
    the first instant after `now` at which a value not yet served falls due. `lag`: clock time since the next value became available, zero
    before that. `age_open`: open-market time since the watermark. Both are None without a watermark.
    """

    state: FreshnessState
    watermark: datetime | None
    expected_event_timestamp: datetime
    due_at: datetime
    next_due_at: datetime
    lag: timedelta | None
    age_open: timedelta | None


def expectation(catalogue: Catalogue, view: FeatureView, stream: Stream) -> Expectation:
    """What `stream` of `view` owes: a value needs its slowest input, so the latency is the greatest of theirs (a dbt mart has none)."""
    latency = max((dataset.latency for dataset in stream.inputs), default=timedelta(0))
    market, max_lag = calendar(stream.calendar), view.slo_of(stream).max_lag
    return Expectation(
        market,
        stream.timeframe,
        latency,
        max_lag,
        view.ttl_of(stream),
        _obliging_series(view, stream),
        _ends_at(market, stream.timeframe, latency, [listing.last for listing in listings_of(catalogue, view, stream).values()]),
    )


def _ends_at(market: MarketCalendar, timeframe: Timeframe, latency: timedelta, last_sessions: Sequence[date | None]) -> datetime | None:
    """When the first bar that no listing covers could be available; None where a listing is open-ended, and where there is none."""
    ended = [last for last in last_sessions if last is not None]
    if not ended or len(ended) < len(last_sessions):
        return None
    unlisted: date = market.sessions(max(ended) + timedelta(days=1), max(ended) + timedelta(days=10))["session"][0]
    return market.next_bar_end(timeframe, market.session(unlisted).window_start) + latency


def _obliging_series(view: FeatureView, stream: Stream) -> tuple[ReleasedSeries, ...]:
    """The series that a stream reads for its instruments, when it reads nothing else."""
    if any(dataset.table != MACRO_OBSERVATIONS for dataset in stream.inputs):
        return ()
    symbols = {found.symbol for found in instruments(stream.market)}
    read = (series for series in series_of(view) if series.symbols is None or not symbols.isdisjoint(series.symbols))
    return tuple(dict.fromkeys(series.released for series in read))


def freshness(catalogue: Catalogue, view: FeatureView, stream: Stream, watermark: datetime | None, now: datetime) -> Freshness:
    """Freshness of a stream of a view; see `evaluate`."""
    return evaluate(expectation(catalogue, view, stream), watermark, now)


def evaluate(expected: Expectation, watermark: datetime | None, now: datetime) -> Freshness:
    """Compare a watermark with what the calendar demands by `now`.

    Args:
        expected: The stream's obligations.
        watermark: Greatest event time served, UTC; None when nothing ever was.
        now: The clock's instant, UTC.

    Raises:
        PointInTimeViolation: The watermark is more than CLOCK_SKEW ahead of `now`. It would hide every missing value until then.
        UnknownPartitionError: An instant outside the calendar's range.
    """
    market, timeframe = expected.calendar, expected.timeframe
    allowance = expected.latency + expected.max_lag
    newest_available = market.latest_bar_end(timeframe, now - expected.latency)
    newest_owed = market.latest_bar_end(timeframe, now - allowance)
    next_deadline = _next_owed(expected, newest_owed) + allowance
    if watermark is None:
        return Freshness(FreshnessState.NEVER, None, newest_available, newest_owed + allowance, next_deadline, lag=None, age_open=None)
    if watermark > now + CLOCK_SKEW:
        raise PointInTimeViolation(
            f"watermark {watermark.isoformat()} is ahead of the clock, {now.isoformat()}; allowed: at most {CLOCK_SKEW.seconds} s ahead. "
            "Read watermarks as of the clock, and quarantine rows from the future"
        )
    has_ended = expected.ends_at is not None and now >= expected.ends_at
    due_at = due_after(expected, newest_available if has_ended else watermark)
    age_open = market.open_time(min(watermark, now), now)
    return Freshness(
        state=_state(expected, due_at, age_open, now),
        watermark=watermark,
        expected_event_timestamp=newest_available,
        due_at=due_at,
        next_due_at=due_at if due_at > now else next_deadline,
        lag=max(now - (due_at - expected.max_lag), timedelta(0)),
        age_open=age_open,
    )


def due_after(expected: Expectation, watermark: datetime) -> datetime:
    """When the value that comes after a watermark must be served.

    Raises:
        UnknownPartitionError: It lies outside the calendar's range.
    """
    market, allowance = expected.calendar, expected.latency + expected.max_lag
    due_at = _next_owed(expected, watermark) + allowance
    if not expected.series:
        return due_at
    expires_at = market.after_open_time(watermark, expected.ttl)
    return min(due_at, max(expires_at, market.next_bar_end(expected.timeframe, watermark) + allowance))


def _next_owed(expected: Expectation, instant: datetime) -> datetime:
    """The first bar end after `instant` whose value must be served: any, or the first that sees a release made after `instant`."""
    if not expected.series:
        return expected.calendar.next_bar_end(expected.timeframe, instant)
    releases = _releases(expected.series)
    return expected.calendar.next_bar_end(expected.timeframe, releases[bisect_right(releases, instant)] - timedelta.resolution)


@cache
def _releases(series: tuple[ReleasedSeries, ...]) -> list[datetime]:
    """When something new of these series must be usable, ascending; the end of time comes last."""
    instants = (one.due_instants(calendar(one.release.calendar).table["session"]) for one in series)
    return [*pl.concat(instants).unique().sort(), datetime.max.replace(tzinfo=UTC)]


def _state(expected: Expectation, due_at: datetime, age_open: timedelta, now: datetime) -> FreshnessState:
    """State of a stream that has a watermark."""
    market = expected.calendar
    if now <= due_at:
        return FreshnessState.FRESH if market.is_open(now) else FreshnessState.CLOSED
    stale = market.open_time(due_at, now) >= expected.max_lag or age_open >= expected.ttl
    return FreshnessState.STALE if stale else FreshnessState.LATE


def evaluate_entities(expected: Expectation, watermarks: pl.DataFrame, now: datetime) -> pl.DataFrame:
    """Freshness of every entity of a stream, worst first: the head names the symbols for an alert.

    Give only entities that are listed now: a delisted symbol owes nothing, which its watermark cannot tell.

    Args:
        expected: The stream's obligations.
        watermarks: One row per entity: its key columns and `watermark` Datetime(us, UTC), null when it never had a value.
        now: The clock's instant, UTC.

    Returns:
        The key columns and watermark as given; state STATES, due_at Datetime(us, UTC), lag and age_open Duration(us), null where NEVER.
        Sorted by state (worst first), watermark (oldest first, null first), then keys.

    Raises:
        MalformedDataError: No `watermark` column of that dtype.
        PointInTimeViolation: A watermark is ahead of `now`.
        UnknownPartitionError: An instant outside the calendar's range.
    """
    if watermarks.schema.get("watermark") != UTC_MICROSECONDS:
        raise MalformedDataError(f"watermarks must have a column watermark of {UTC_MICROSECONDS}; got {dict(watermarks.schema)}")
    # Entities of a stream share few watermarks, so each distinct one is evaluated once.
    distinct = watermarks["watermark"].unique()
    results = [evaluate(expected, watermark, now) for watermark in distinct]
    judged = pl.DataFrame(
        {
            "watermark": distinct,
            "state": pl.Series([result.state.value for result in results], dtype=STATES),
            "due_at": pl.Series([result.due_at for result in results], dtype=UTC_MICROSECONDS),
            "lag": pl.Series([result.lag for result in results], dtype=pl.Duration("us")),
            "age_open": pl.Series([result.age_open for result in results], dtype=pl.Duration("us")),
        }
    )
    keys = [column for column in watermarks.columns if column != "watermark"]
    order = ["state", "watermark", *keys]
    return watermarks.join(judged, on="watermark", how="left", nulls_equal=True).sort(order, descending=[True] + [False] * (len(order) - 1))
