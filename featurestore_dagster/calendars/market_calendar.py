"""MarketCalendar: what is asked of the sessions of one market. Where its sessions come from belongs in `lookup`."""

from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import cached_property

import polars as pl

from featurestore_dagster.errors import MalformedDataError, UnknownPartitionError
from featurestore_dagster.model.raw_table import UTC_MICROSECONDS
from featurestore_dagster.model.time import Timeframe

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

    def session_at(self, instant: datetime) -> Session:
        """The session that owns an instant: as `session_of`, at a hundredth of the cost of a series.

        Raises:
            UnknownPartitionError: The instant is outside the calendar's range.
        """
        return self.session(self._labels[self._position(_microseconds(instant))])

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

    def open_microseconds_at(self, microseconds: int) -> int:
        """As `open_microseconds`, of one instant given in microseconds since 1970: a thousandth of the cost of a series."""
        return min(self._traded_at(microseconds))

    def after_open_time(self, start: datetime, span: timedelta) -> datetime:
        """The first instant at which the market has been open for `span`, above zero, since `start`.

        Raises:
            UnknownPartitionError: `start`, or that instant, is outside the calendar's range.
        """
        target = min(self._traded(start)) + span // MICROSECOND
        _, shift, most = self._segment_lists
        segment = bisect_left(most, target)
        if segment == len(most):
            raise self._uncovered(start + span)
        return _instant(target + shift[segment])

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
        return self._traded_at(_microseconds(instant))

    def _traded_at(self, at: int) -> tuple[int, int]:
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


def _lookup(values: pl.Series, positions: pl.Series, instants: pl.Series) -> pl.Series:
    """`values` at `positions`, null where the instant is null, named as the instants."""
    return values.gather(positions.set(instants.is_null(), None)).rename(instants.name)


def _microseconds(instant: datetime) -> int:
    return (instant - EPOCH) // MICROSECOND


def _instant(microseconds: int) -> datetime:
    return EPOCH + timedelta(microseconds=microseconds)
