"""Made-up overviews for whatever shows them."""

from datetime import UTC, datetime, timedelta

from featurestore_dagster.serving.freshness import Freshness, FreshnessState
from featurestore_dagster.serving.overview import Overview, StreamOverview
from featurestore_dagster.serving.slo_state import StreamState

AT = datetime(2018, 12, 31, 22, tzinfo=UTC)
HOUR = timedelta(hours=1)


def stream(view: str, state: FreshnessState, *worst: str, delays: tuple[float, ...] = ()) -> StreamOverview:
    """A stream with an SLO of two hours; what is overdue was due three hours ago."""
    watermark = None if state is FreshnessState.NEVER else AT - 5 * HOUR
    due = AT - 3 * HOUR if state.overdue else AT + 20 * HOUR
    lag = None if watermark is None else 5 * HOUR if state.overdue else timedelta(0)
    freshness = Freshness(state, watermark, AT - HOUR, due, due, lag, lag)
    return StreamOverview(StreamState(view, "us_equity_1d", freshness, worst), 2 * HOUR, delays)


CALM = Overview(AT, "", (stream("calm_view", FreshnessState.CLOSED, delays=(60.0, 75.0, 3_600.0)),), {}, {})
TROUBLED = Overview(
    AT,
    "replay clock: 2018-12-31T22:00:00+00:00",
    (
        stream("empty_view", FreshnessState.NEVER),
        stream("late_view", FreshnessState.LATE, "AAA: LATE, newest 2018-12-31", '<script>alert("x")</script>', delays=(60.0,) * 30),
        stream("good_view", FreshnessState.FRESH, delays=(60.0, 86_400.0, 75.0)),
    ),
    {("raw.prices", "2018-12-31"): [{"check": "empty_partition", "rows": 0, "examples": ["no <row> came"]}]},
    {"raw.prices": 1_234},
)
