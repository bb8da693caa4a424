"""Market calendars: sessions, partition windows, expected bar ends and open-market time.

What counts as late belongs in `serving.freshness`; Dagster's partition definitions are built from here in `orchestration`.
"""

from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import cache, cached_property

import polars as pl

from featurestore_dagster.errors import ConfigurationError, MalformedDataError, UnknownNameError, UnknownPartitionError
from featurestore_dagster.model.raw_table import UTC_MICROSECONDS
from featurestore_dagster.model.time import Timeframe

FIRST_DAY = date(1990, 1, 1)
LAST_DAY = date(2049, 12, 31)
"""Sessions are laid out once for this range, whatever the clock says: a calendar is the same in every process and every replay."""

ALWAYS_OPEN = "24/7"
FOREIGN_EXCHANGE = "FX"

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)
DAY_MICROSECONDS = timedelta(days=1) // MICROSECOND

SESSION_COLUMNS = ("session", "opens", "closes", "window_start", "window_end")


@dataclass(frozen=True)
class Session:
    """One trading session: its partition label, its trading hours and the window (window_start, window_end] of instants it owns."""

    label: date
    opens: datetime
    closes: datetime
    window_start: datetime
    window_end: datetime


@dataclass(frozen=True, eq=False)
class MarketCalendar:
    """The sessions of one market; get it from `calendar(name)`.

    A session's label is its partition key. Windows are contiguous, so every instant belongs to exactly one session: weekend and holiday
    instants to the next one. A window ends at the local `hour_offset` o'clock after the session, as Dagster's daily partitions do.

    `time_zone` and `hour_offset` are those of the label. `grid_from_midnight`: intraday bars are laid from 00:00 UTC and run through
    session ends; else from the session open, the last one ending at the close. `first_day` and `last_day` bound the labels that are
    known. `table` holds SESSION_COLUMNS, break_start and break_end.
    """

    name: str
    time_zone: str
    hour_offset: int
    grid_from_midnight: bool
    first_day: date
    last_day: date
    table: pl.DataFrame

    @cached_property
    def closed_weekdays(self) -> tuple[int, ...]:
        """Weekdays (Monday 0) that label no session at all: the regular weekend, for a partition definition's exclusions."""
        traded = set((self.table["session"].dt.weekday() - 1).to_list())
        return tuple(weekday for weekday in range(7) if weekday not in traded)

    def closed_days(self, start: date, end: date) -> list[date]:
        """Holidays: days from `start` to `end` (inclusive, ascending) that label no session and are no `closed_weekdays`.

        Raises:
            UnknownPartitionError: A date outside the calendar's range.
        """
        sessions = set(self.sessions(start, end)["session"].to_list())
        days = (start + timedelta(days=offset) for offset in range((end - start).days + 1))
        return [day for day in days if day not in sessions and day.weekday() not in self.closed_weekdays]

    def sessions(self, start: date, end: date) -> pl.DataFrame:
        """Sessions labelled `start` to `end` (inclusive), ascending.

        Returns:
            session Date; opens, closes, window_start, window_end Datetime(us, UTC). No nulls.

        Raises:
            UnknownPartitionError: A date outside the calendar's range.
        """
        for day in (start, end):
            if not self.first_day <= day <= self.last_day:
                raise UnknownPartitionError(
                    f"{day} is outside calendar {self.name}, which is known from {self.first_day} to {self.last_day}"
                )
        return self.table.select(SESSION_COLUMNS).filter(pl.col("session").is_between(start, end))

    def is_session(self, day: date) -> bool:
        """Whether `day` labels a session; False outside the calendar's range."""
        return day in self._positions

    def session(self, label: date) -> Session:
        """The session of this label.

        Raises:
            UnknownPartitionError: The date labels no session; the message names the nearest ones.
        """
        if label not in self._positions:
            after = bisect_left(self._labels, label)
            nearest = " and ".join(str(day) for day in self._labels[max(after - 1, 0) : after + 1])
            raise UnknownPartitionError(f"{label} is not a session of calendar {self.name}; the nearest: {nearest}")
        row = self.table.row(self._positions[label], named=True)
        return Session(label, *(row[column] for column in SESSION_COLUMNS[1:]))

    def previous_sessions(self, day: date, count: int) -> date:
        """Label of the session `count` sessions before `day`; count 0 is `day` itself or, on a closed day, the session before it.

        Where the calendar does not reach that far back, its first session: there is no earlier history to want.
        """
        at_or_before = bisect_right(self._labels, day) - 1
        return self._labels[max(at_or_before - count, 0)]

    def session_of(self, instants: pl.Series) -> pl.Series:
        """Label of the session that owns each instant: the partition key, as a date.

        In a frame: `pl.col("event_timestamp").map_batches(calendar.session_of, return_dtype=pl.Date)`.

        Args:
            instants: Datetime(us, UTC), any order; null gives null.

        Returns:
            Date, same length and order.

        Raises:
            MalformedDataError: Another dtype.
            UnknownPartitionError: An instant outside the calendar's range.
        """
        self._require_covered(instants)
        return _lookup(self.table["session"], self.table["window_end"].search_sorted(instants, side="left"), instants)

    def bar_ends(self, timeframe: Timeframe, start: datetime, end: datetime) -> pl.Series:
        """Bar ends that the market owes, start < bar_end <= end, ascending, as Datetime(us, UTC).

        1d: the session's close. Intraday: the grid described at the class, less bars that lie wholly in a lunch break; where trading stops
        between two grid points, a last short bar ends at the close.

        Raises:
            UnknownPartitionError: An instant outside the calendar's range.
        """
        low, high = _microseconds(start), _microseconds(end)
        sessions = range(self._position(low), self._position(high) + 1)
        ends = [bar_end for position in sessions for bar_end in self._bar_ends(timeframe, position) if low < bar_end <= high]
        return pl.Series("bar_end", ends, dtype=pl.Int64).cast(UTC_MICROSECONDS)

    def latest_bar_end(self, timeframe: Timeframe, instant: datetime) -> datetime:
        """The newest bar end <= `instant`.

        Raises:
            UnknownPartitionError: No bar has ended within the calendar's range, or the instant is outside it.
        """
        limit = _microseconds(instant)
        for position in range(self._position(limit), -1, -1):
            bar_ends = self._bar_ends(timeframe, position)
            if ended := bisect_right(bar_ends, limit):
                return _instant(bar_ends[ended - 1])
        raise self._uncovered(instant)

    def next_bar_end(self, timeframe: Timeframe, instant: datetime) -> datetime:
        """The first bar end > `instant`.

        Raises:
            UnknownPartitionError: No later bar within the calendar's range, or the instant is outside it.
        """
        limit = _microseconds(instant)
        for position in range(self._position(limit), len(self._labels)):
            bar_ends = self._bar_ends(timeframe, position)
            if (ended := bisect_right(bar_ends, limit)) < len(bar_ends):
                return _instant(bar_ends[ended])
        raise self._uncovered(instant)

    def is_open(self, instant: datetime) -> bool:
        """Whether the market trades at `instant`: opening instant included, closing instant not.

        Raises:
            UnknownPartitionError: The instant is outside the calendar's range.
        """
        traded, most = self._traded(instant)
        return traded < most

    def open_time(self, start: datetime, end: datetime) -> timedelta:
        """Time for which the market was open between two instants: the age at `end` of what happened at `start`.

        Raises:
            UnknownPartitionError: An instant outside the calendar's range.
        """
        return timedelta(microseconds=min(self._traded(end)) - min(self._traded(start)))

    def open_microseconds(self, instants: pl.Series) -> pl.Series:
        """Time for which the market was open from the calendar's start to each instant; the age of x at y is the difference of theirs.

        Args:
            instants: Datetime(us, UTC), any order; null gives null.

        Returns:
            Int64 microseconds, same length and order; exact, constant while the market is closed.

        Raises:
            MalformedDataError: Another dtype.
            UnknownPartitionError: An instant outside the calendar's range.
        """
        self._require_covered(instants)
        segment = self._segments["opens"].search_sorted(instants, side="right") - 1
        shift, most = (_lookup(self._segments[column], segment, instants) for column in ("shift", "most"))
        return pl.select(pl.min_horizontal(instants.to_physical() - shift, most)).to_series().rename(instants.name)

    @cached_property
    def _labels(self) -> list[date]:
        return self.table["session"].to_list()

    @cached_property
    def _positions(self) -> dict[date, int]:
        return {label: position for position, label in enumerate(self._labels)}

    @cached_property
    def _window_bounds(self) -> list[int]:
        """Start of the first window, then the end of each."""
        return [_microseconds(self.table["window_start"][0]), *self.table["window_end"].to_physical()]

    @cached_property
    def _hours(self) -> list[tuple[int, int, int | None, int | None]]:
        return self.table.select(pl.col("opens", "closes", "break_start", "break_end").to_physical()).rows()

    @cached_property
    def _segments(self) -> pl.DataFrame:
        """Uninterrupted trading by `opens`, ascending; first an empty segment at the range's start.

        Open time at an instant of the segment is the instant less `shift`, and after its end `most` (microseconds).
        """
        nothing = self.table.head(1).select(opens="window_start", closes="window_start")
        until_break = self.table.select("opens", closes=pl.coalesce("break_start", "closes"))
        after_break = self.table.drop_nulls("break_start").select(opens="break_end", closes="closes")
        segments = pl.concat([nothing, until_break, after_break]).sort("opens", "closes")
        closes, most = pl.col("closes").to_physical(), (pl.col("closes") - pl.col("opens")).to_physical().cum_sum()
        return segments.select("opens", shift=closes - most, most=most)

    @cached_property
    def _segment_lists(self) -> tuple[list[int], list[int], list[int]]:
        """`_segments` for one instant at a time: bisecting a list takes microseconds, a Polars call a millisecond."""
        opens, shift, most = self._segments.select(pl.all().to_physical()).get_columns()
        return opens.to_list(), shift.to_list(), most.to_list()

    def _traded(self, instant: datetime) -> tuple[int, int]:
        """Open time at the instant if its segment were endless, and at its segment's end; the smaller one is the open time."""
        at = _microseconds(instant)
        self._position(at)
        opens, shift, most = self._segment_lists
        segment = bisect_right(opens, at) - 1
        return at - shift[segment], most[segment]

    def _bar_ends(self, timeframe: Timeframe, position: int) -> list[int]:
        """Bar ends of one session, ascending microseconds."""
        opens, closes, break_start, break_end = self._hours[position]
        if timeframe is Timeframe.ONE_DAY:
            return [closes]
        step = timeframe.duration // MICROSECOND
        origin = opens - opens % DAY_MICROSECONDS if self.grid_from_midnight else opens
        first = opens + step - (opens - origin) % step
        bar_ends = list(range(first, closes, step))
        if break_start is not None and break_end is not None:
            bar_ends = [bar_end for bar_end in bar_ends if bar_end - step < break_start or bar_end > break_end]
        trading_goes_on = position + 1 < len(self._hours) and self._hours[position + 1][0] == closes
        if not trading_goes_on or (closes - origin) % step == 0:
            bar_ends.append(closes)
        return bar_ends

    def _position(self, instant: int) -> int:
        """Row of the session that owns the instant (microseconds)."""
        bounds = self._window_bounds
        if not bounds[0] <= instant <= bounds[-1]:
            raise self._uncovered(_instant(instant))
        return max(bisect_left(bounds, instant) - 1, 0)

    def _require_covered(self, instants: pl.Series) -> None:
        if instants.dtype != UTC_MICROSECONDS:
            raise MalformedDataError(
                f"instants have dtype {instants.dtype}; calendar {self.name} takes {UTC_MICROSECONDS}: cast them first"
            )
        earliest, latest = instants.min(), instants.max()
        for instant in (earliest, latest):
            if isinstance(instant, datetime):
                self._position(_microseconds(instant))

    def _uncovered(self, instant: datetime) -> UnknownPartitionError:
        first, last = self.table["window_start"][0], self.table["window_end"][-1]
        return UnknownPartitionError(f"{instant.isoformat()} is outside calendar {self.name}, which covers {first} to {last}")


@cache
def calendar(name: str) -> MarketCalendar:
    """The calendar of this name: "24/7" (UTC days), "FX" (24/5), or an exchange's code in exchange_calendars, such as "XNYS".

    FX trades from Sunday 17:00 to Friday 17:00 America/New_York, less the sessions that end on 25 December and 1 January. Its session
    is labelled with the New York date on which it *starts* (Sunday 17:00 to Monday 17:00 is Sunday's), as Dagster labels a daily
    partition with an hour offset.

    Raises:
        UnknownNameError: No calendar has this name.
        ConfigurationError: Its sessions open before their own local day (overnight futures), so days cannot partition them.
    """
    if name == ALWAYS_OPEN:
        return _day_calendar(ALWAYS_OPEN, "UTC", hour_offset=0, traded=pl.lit(value=True))
    if name == FOREIGN_EXCHANGE:
        last_day = pl.col("session").dt.offset_by("1d")
        holiday = last_day.dt.strftime("%m-%d").is_in(["12-25", "01-01"])
        return _day_calendar(FOREIGN_EXCHANGE, "America/New_York", hour_offset=17, traded=(last_day.dt.weekday() < 6) & ~holiday)
    return _exchange_calendar(name)


def _day_calendar(name: str, time_zone: str, hour_offset: int, traded: pl.Expr) -> MarketCalendar:
    """Sessions of a whole day from `hour_offset` to `hour_offset`, local time, on the days that `traded` selects by `session`."""
    days = pl.date_range(FIRST_DAY, LAST_DAY, eager=True).alias("session").to_frame().filter(traded)
    hours = days.select(
        "session",
        opens=_local_instant(pl.col("session"), hour_offset, time_zone),
        closes=_local_instant(pl.col("session").dt.offset_by("1d"), hour_offset, time_zone),
        break_start=pl.lit(None, UTC_MICROSECONDS),
        break_end=pl.lit(None, UTC_MICROSECONDS),
    )
    table = _with_windows(hours, FIRST_DAY, hour_offset, time_zone)
    return MarketCalendar(name, time_zone, hour_offset, grid_from_midnight=True, first_day=FIRST_DAY, last_day=LAST_DAY, table=table)


def _exchange_calendar(name: str) -> MarketCalendar:
    # Imported here because it brings pandas, which neither importing this module nor a market without an exchange should pay for.
    import exchange_calendars

    codes = set(exchange_calendars.get_calendar_names(include_aliases=False)) - {ALWAYS_OPEN}
    if name not in codes:
        raise UnknownNameError("calendar", name, codes | {ALWAYS_OPEN, FOREIGN_EXCHANGE})
    first_day, last_day = FIRST_DAY, LAST_DAY
    try:
        recorded = exchange_calendars.get_calendar(name, start=str(first_day), end=str(last_day))
    except ValueError:  # this exchange's holidays are recorded for a shorter range, which only its class tells
        kind = type(exchange_calendars.get_calendar(name))
        earliest, latest = kind.bound_min(), kind.bound_max()
        first_day = max(first_day, earliest.date()) if earliest is not None else first_day
        last_day = min(last_day, latest.date()) if latest is not None else last_day
        recorded = kind(start=str(first_day), end=str(last_day))
    time_zone = str(recorded.tz)
    columns = {"opens": recorded.opens, "closes": recorded.closes, "break_start": recorded.break_starts, "break_end": recorded.break_ends}
    hours = pl.DataFrame(
        {"session": pl.Series(recorded.sessions.to_numpy()).cast(pl.Date)}
        | {column: pl.Series(instants.to_numpy(dtype="datetime64[us]")).dt.replace_time_zone("UTC") for column, instants in columns.items()}
    )
    overnight = hours.filter(pl.col("opens") < _local_instant(pl.col("session"), 0, time_zone))
    if overnight.height:
        raise ConfigurationError(
            f"calendar {name} opens session {overnight['session'][0]} at {overnight['opens'][0]}, the evening before in {time_zone}; "
            f"allowed: calendars whose sessions open within their own local day, {ALWAYS_OPEN} or {FOREIGN_EXCHANGE}"
        )
    table = _with_windows(hours, first_day, 0, time_zone)
    return MarketCalendar(name, time_zone, 0, grid_from_midnight=False, first_day=first_day, last_day=last_day, table=table)


def _with_windows(hours: pl.DataFrame, first_day: date, hour_offset: int, time_zone: str) -> pl.DataFrame:
    """Add window_end, the local boundary after the session's day, and window_start, the previous window_end or `first_day`'s boundary."""
    window_end = _local_instant(pl.col("session").dt.offset_by("1d"), hour_offset, time_zone)
    first = _local_instant(pl.lit(first_day), hour_offset, time_zone)
    return hours.with_columns(window_end=window_end).with_columns(window_start=pl.col("window_end").shift(1).fill_null(first))


def _local_instant(day: pl.Expr, hour: int, time_zone: str) -> pl.Expr:
    """UTC instant of `hour` o'clock local time. A midnight that a clock change skips is the hour after it: the day's first instant."""
    local = day.cast(pl.Datetime("us"))
    hours = [
        local.dt.offset_by(f"{wall_hour}h").dt.replace_time_zone(time_zone, ambiguous="earliest", non_existent="null")
        for wall_hour in (hour, hour + 1)
    ]
    return pl.coalesce(hours).dt.convert_time_zone("UTC")


def _lookup(values: pl.Series, positions: pl.Series, instants: pl.Series) -> pl.Series:
    """`values` at `positions`, null where the instant is null, named as the instants."""
    return values.gather(positions.set(instants.is_null(), None)).rename(instants.name)


def _microseconds(instant: datetime) -> int:
    return (instant - EPOCH) // MICROSECOND


def _instant(microseconds: int) -> datetime:
    return EPOCH + timedelta(microseconds=microseconds)
