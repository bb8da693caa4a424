"""The SLO ledger: for how much of each day a stream was overdue, its attainment and error budget by month.

Counted from the publications and not from the sensor's ticks: what a stream's watermark was at any instant, and therefore from when to when
a value was owed, stands in the ledger of publications. So a daemon that was down neither hides nor invents lateness, the first evaluation
after it counts what it missed, and a backfill of an old day moves no watermark and changes nothing. What was counted is kept, so that a
changed SLO does not judge the past.

Overdue is what `serving.freshness` says: from due at until the next value is published. The error budget is the share of the whole month
that the SLO's objective leaves, for each stream.
"""

import calendar as months
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, date, datetime, timedelta
from itertools import groupby

from featurestore_dagster.errors import MalformedDataError
from featurestore_dagster.model.catalogue import Catalogue
from featurestore_dagster.model.feature_view import FeatureView, Stream
from featurestore_dagster.projections.relation import stream_relation
from featurestore_dagster.serving.freshness import Expectation, due_after, expectation
from featurestore_dagster.stores.postgres.slo_ledger import CLOCK_SET_BACK, SloDay, SloStore

DAY = timedelta(days=1)
TICK_SECONDS = 10.0
Advance = tuple[datetime, datetime]
"""When a watermark was published, and the watermark."""


@dataclass(frozen=True)
class SloMonth:
    """One stream of a view in one month, or (stream None) all streams of the view together.

    `attainment` is the share of the evaluated time in which nothing was overdue, None before anything was evaluated. `budget_seconds` may
    be overdue in the whole month; what is left is negative when the objective is missed.
    """

    view: str
    stream: str | None
    month: str
    objective: float
    evaluated_seconds: float
    overdue_seconds: float
    budget_seconds: float

    @property
    def attainment(self) -> float | None:
        """Share of the evaluated time in which nothing was overdue."""
        return 1 - self.overdue_seconds / self.evaluated_seconds if self.evaluated_seconds else None

    @property
    def budget_left_seconds(self) -> float:
        """What may still be overdue in the month."""
        return self.budget_seconds - self.overdue_seconds

    @property
    def budget_left(self) -> float:
        """The same as a share of the budget."""
        return self.budget_left_seconds / self.budget_seconds

    def as_dict(self) -> dict[str, object]:
        """Fields and properties, for JSON."""
        derived = ("attainment", "budget_left_seconds", "budget_left")
        return asdict(self) | {name: getattr(self, name) for name in derived}


def overdue_intervals(
    expected: Expectation, watermark: datetime | None, advances: Iterable[Advance], start: datetime, end: datetime
) -> list[tuple[datetime, datetime]]:
    """When a stream was overdue in [start, end), given its watermark at `start` and what was published since; ascending and disjoint.

    A publication that lies before `start` was not seen then, since it was not committed: it counts from `start`.
    """
    overdue: list[tuple[datetime, datetime]] = []

    def count(held: datetime | None, since: datetime, until: datetime) -> None:
        owed_since = since
        if held is not None:
            owed_since = max(since, due_after(expected, held))
            until = min(until, expected.ends_at or until)
        if owed_since < until:
            if overdue and overdue[-1][1] == owed_since:
                owed_since = overdue.pop()[0]
            overdue.append((owed_since, until))

    since = start
    for published_at, published in sorted(advances):
        if published_at >= end:
            break
        if watermark is not None and published <= watermark:
            continue
        until = max(published_at, since)
        count(watermark, since, until)
        since, watermark = until, published
    count(watermark, since, end)
    return overdue


def uncounted(
    catalogue: Catalogue, store: SloStore, now: datetime, *, begun_only: bool = False, since: datetime | None = None
) -> Iterator[list[SloDay]]:
    """Of each stream, the days that the ledger lacks up to `now`, and the one that it has in part as it is when counted whole.

    Streams whose count is oldest come first, new ones (not with `begun_only`) last. Days before `since`, a midnight, are passed over: what
    they ended with stands in the ledger of publications. Writes nothing.
    """
    last = store.last_days(now)
    fed = [(view, stream) for view in catalogue.views for stream in filter(catalogue.is_fed, view.streams)]
    if begun_only:
        fed = [(view, stream) for view, stream in fed if (view.label, stream.name) in last]
    new = any((view.label, stream.name) not in last for view, stream in fed)
    first_published_at = store.first_published_at() if new else {}
    begun = [(last.get((view.label, stream.name)), view, stream) for view, stream in fed]
    for day, view, stream in sorted(begun, key=lambda item: item[0].evaluated_until if item[0] else now + CLOCK_SET_BACK):
        yield _count(catalogue, store, view, stream, day, first_published_at, now, since)


def _count(
    catalogue: Catalogue,
    store: SloStore,
    view: FeatureView,
    stream: Stream,
    last: SloDay | None,
    first_published_at: dict[str, datetime],
    now: datetime,
    since: datetime | None,
) -> list[SloDay]:
    relation = stream_relation(view, stream)
    if last is None:  # a stream owes from its first publication, or from its first evaluation
        start = min(first_published_at.get(relation.name, now), now)
        last = SloDay(view.label, stream.name, start.date(), 0.0, 0.0, start, None, 0)
    if last.evaluated_until > now:
        return []
    if since is not None and last.evaluated_until < since:
        last = SloDay(view.label, stream.name, since.date(), 0.0, 0.0, since, *store.position(relation, since))
    advances = store.advances(relation, last.publication_id, last.watermark).rows()
    published = [(published_at, watermark) for _, published_at, watermark in advances]
    overdue = overdue_intervals(expectation(catalogue, view, stream), last.watermark, published, last.evaluated_until, now)
    counted: list[SloDay] = []
    day, seen = last, 0
    while not counted or counted[-1].evaluated_until < now:
        since, until = day.evaluated_until, min(_midnight(day.day + DAY), now)
        publication_id, watermark = day.publication_id, day.watermark
        # One writer at a time publishes a relation, so its publications have the same order by id and by time.
        while seen < len(advances) and (advances[seen][1] < until or until == now):
            publication_id, _, newest = advances[seen]
            watermark = max(watermark or newest, newest)
            seen += 1
        late = sum((min(until, end) - max(since, begin)).total_seconds() for begin, end in overdue if begin < until and end > since)
        day = replace(
            day,
            evaluated_seconds=day.evaluated_seconds + (until - since).total_seconds(),
            overdue_seconds=day.overdue_seconds + late,
            evaluated_until=until,
            watermark=watermark,
            publication_id=publication_id,
        )
        counted.append(day)
        day = replace(day, day=day.day + DAY, evaluated_seconds=0.0, overdue_seconds=0.0)
    return counted


def record(catalogue: Catalogue, store: SloStore, now: datetime) -> None:
    """Count up to `now` and keep it; any number of daemons may do so.

    A long backlog, as when the ledger is new, is counted in several calls, each of little more than TICK_SECONDS.
    """
    store.forget_after(now)
    counted: list[SloDay] = []
    ends = time.monotonic() + TICK_SECONDS
    for days in uncounted(catalogue, store, now):
        counted += days
        if time.monotonic() > ends:
            break
    store.record(counted)


def slo_months(
    catalogue: Catalogue, store: SloStore, now: datetime, month: str | None = None, view: str | None = None, *, begun_only: bool = False
) -> list[SloMonth]:
    """Attainment and error budget of a month (YYYY-MM, UTC; None: this one) up to `now`, also of what no daemon has counted yet.

    Only days of the month are counted, however long no daemon did; `begun_only` leaves out streams that none has ever counted.

    One line for each stream that was evaluated, after a line (stream None) for a view that has several; by view and stream.

    Raises:
        UnknownNameError: No such view.
        MalformedDataError: `month` is none.
    """
    wanted = catalogue.view(view).label if view else None
    first = _first_day(month) if month else now.date().replace(day=1)
    length = months.monthrange(first.year, first.month)[1]
    last = first + timedelta(days=length - 1)
    since, until = _midnight(first), min(now, _midnight(last + DAY))
    days = {(day.view, day.stream, day.day): day for day in store.days(first, last)}
    days |= {
        (day.view, day.stream, day.day): day
        for found in (uncounted(catalogue, store, until, begun_only=begun_only, since=since) if since < until else ())
        for day in found
        if first <= day.day <= last
    }
    objectives = {(v.label, s.name): v.slo_of(s).objective for v in catalogue.views for s in v.streams}
    result: list[SloMonth] = []
    ordered = sorted(key for key in days if key[:2] in objectives and wanted in (None, key[0]))
    for name, of_view in groupby(ordered, key=lambda key: key[0]):
        streams = [
            _month(first, length, objectives[name, stream], [days[key] for key in keys])
            for stream, keys in groupby(of_view, key=lambda key: key[1])
        ]
        result += [*([_together(streams)] if len(streams) > 1 else []), *streams]
    return result


def _first_day(month: str) -> date:
    try:
        return date.fromisoformat(f"{month}-01")
    except ValueError:
        raise MalformedDataError(f"{month!r} is no month; give YYYY-MM, for example 2018-12") from None


def _month(first: date, length: int, objective: float, days: Sequence[SloDay]) -> SloMonth:
    return SloMonth(
        days[0].view,
        days[0].stream,
        f"{first:%Y-%m}",
        objective,
        sum(day.evaluated_seconds for day in days),
        sum(day.overdue_seconds for day in days),
        (1 - objective) * length * DAY.total_seconds(),
    )


def _together(streams: Sequence[SloMonth]) -> SloMonth:
    budget = sum(stream.budget_seconds for stream in streams)
    objective = sum(stream.objective for stream in streams) / len(streams)
    evaluated, overdue = sum(s.evaluated_seconds for s in streams), sum(s.overdue_seconds for s in streams)
    return SloMonth(streams[0].view, None, streams[0].month, objective, evaluated, overdue, budget)


def _midnight(day: date) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=UTC)
