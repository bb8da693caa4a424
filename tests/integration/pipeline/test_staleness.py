"""What a macro revision makes stale: from when it could be known on, and before dbt has put it into the mart."""

from datetime import date, timedelta

from psycopg import sql

from featurestore_dagster.features.macro_views import PORTFOLIO_MACRO_FEATURES
from featurestore_dagster.features.raw_tables import US_MACRO
from featurestore_dagster.pipeline.inputs import MART_COLUMNS
from featurestore_dagster.pipeline.staleness import Staleness, reads
from featurestore_dagster.projections.postgres_table import postgres_type
from featurestore_dagster.projections.relation import stream_relation
from featurestore_dagster.stores.postgres.connection import connect
from featurestore_dagster.stores.postgres.restatements import Restatements
from tests.integration.pipeline.conftest import Deployment
from tests.unit.pipeline.frames import close_of, frame, keys_between, session_bars

DAYS = keys_between("2018-12-03", "2018-12-12")
[STREAM] = PORTFOLIO_MACRO_FEATURES.streams
RELATION = stream_relation(PORTFOLIO_MACRO_FEATURES, STREAM).name


def _mart(deployment: Deployment) -> None:
    columns = sql.SQL(", ").join(
        sql.SQL("{} {}").format(sql.Identifier(name), sql.SQL(postgres_type(dtype))) for name, dtype in MART_COLUMNS.items()
    )
    with connect(deployment.settings.postgres) as connection:
        connection.execute(sql.SQL("create schema if not exists marts"))
        connection.execute(sql.SQL("create table marts.macro_series ({})").format(columns))


def _release(deployment: Deployment, day: str, value: float) -> None:
    """A value of the VIX of the day before, released at the close of a session; a second one revises it, and is known an hour later."""
    released = close_of(day)
    row = {
        "dataset": US_MACRO.name,
        "series_id": "VIXCLS",
        "observation_date": date.fromisoformat(day) - timedelta(days=1),
        "value": value,
        "event_timestamp": released,
        "source": "files",
        "known_at": released,
        "known_at_basis": "assumed",
        "flags": 0,
    }
    deployment.deliver(frame([row], US_MACRO), US_MACRO)
    assert not any(outcome.blocked for outcome in deployment.ingest(day, dataset=US_MACRO))


def test_a_macro_revision_makes_stale_what_could_know_it(deployment: Deployment) -> None:
    _mart(deployment)
    deployment.clock.instant = close_of(DAYS[-1]) + timedelta(hours=1)
    deployment.deliver(session_bars(DAYS))
    deployment.ingest(*DAYS)
    assert not any(outcome.blocked for outcome in deployment.materialise(PORTFOLIO_MACRO_FEATURES, *DAYS))
    restatements = Restatements(deployment.settings.postgres)
    seen = restatements.newest_publication()

    def stale() -> tuple[str, ...]:
        found = Staleness.of(deployment.pipeline, restatements).stream(PORTFOLIO_MACRO_FEATURES, STREAM, restatements.writes(seen))
        return found.partitions if found else ()

    assert "raw.us_macro" in reads(PORTFOLIO_MACRO_FEATURES, STREAM)
    assert stale() == ()
    _release(deployment, DAYS[2], 20.0)
    # Released at the close, it can be known to the snapshot of that instant.
    assert stale() == tuple(DAYS[2:])
    seen = restatements.newest_publication()
    deployment.clock.advance(minutes=-10)
    _release(deployment, DAYS[2], 21.0)
    # The revision was not known on any earlier day; the last snapshot of today is ten minutes older than it.
    assert stale() == ()
