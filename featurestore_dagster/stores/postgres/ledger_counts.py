"""The ledger, the quarantine and the restatements as counts, for a reader that asks again and again.

Publication ids appear in commit order, so a reader that remembers the last one counts each publication once. Reading lines belongs to
`ledger`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from featurestore_dagster.settings import PostgresSettings
from featurestore_dagster.stores.postgres.connection import connect


@dataclass(frozen=True)
class NewPublications:
    """What the ledger got after a publication: its newest id, and row versions published by relation."""

    last_publication_id: int
    rows: dict[str, int]


@dataclass(frozen=True)
class Refused:
    """By relation: rows ever refused, and those still open."""

    rows: dict[str, int]
    rows_open: dict[str, int]


def publications_after(settings: PostgresSettings, publication_id: int) -> NewPublications:
    """Counts of the publications after this one."""
    with connect(settings) as connection:
        connection.execute("set transaction isolation level repeatable read, read only")
        newest = connection.execute("select coalesce(max(publication_id), 0) from ops.publications").fetchone()
        rows: list[Any] = connection.execute(
            "select relation, sum(rows_published)::bigint from ops.publications where publication_id > %s group by relation",
            [publication_id],
        ).fetchall()
    return NewPublications(newest[0] if newest else 0, dict(rows))


def restatement_latencies(settings: PostgresSettings, bounds: Sequence[float]) -> dict[str, tuple[list[int], float]]:
    """By path: restatements that are done, counted by their seconds up to each bound and beyond the last, and the sum of the seconds.

    From the publication of the oldest cause to the end of the run, when the online rows are up to date.
    """
    with connect(settings) as connection:
        rows: list[Any] = connection.execute(
            "select job, width_bucket(seconds, %s::double precision[]), count(*), sum(seconds) from (select job,"
            " greatest(extract(epoch from finished_at - changed_at), 0)::double precision as seconds from ops.restatements"
            " where status = 'done' and finished_at is not null) done group by 1, 2",
            [list(bounds)],
        ).fetchall()
    found: dict[str, tuple[list[int], float]] = {}
    for job, bucket, count, seconds in rows:
        counts, total = found.get(job, ([0] * (len(bounds) + 1), 0.0))
        counts[bucket] += count
        found[job] = (counts, total + seconds)
    return found


def refused(settings: PostgresSettings) -> Refused:
    """Counts of the quarantine, as it is now."""
    with connect(settings) as connection:
        rows: list[Any] = connection.execute(
            "select relation, count(*), count(*) filter (where status = 'open') from ops.quarantine group by relation"
        ).fetchall()
    return Refused({name: count for name, count, _ in rows}, {name: count for name, _, count in rows})


def pending_publications(settings: PostgresSettings, applied: Mapping[str, int]) -> dict[str, int]:
    """By view: publications with rows after the one that was applied (0: none was)."""
    with connect(settings) as connection:
        rows: list[Any] = connection.execute(
            "select view, count(publication_id) from unnest(%s::text[], %s::bigint[]) as given(view, applied)"
            " left join ops.publications on starts_with(relation, 'features.' || view || '.') and publication_id > applied"
            " and rows_published > 0 group by view",
            [list(applied), list(applied.values())],
        ).fetchall()
    return dict(rows)


def publication_delays(settings: PostgresSettings, relations: Sequence[str], count: int) -> dict[str, list[float]]:
    """By relation, of its newest publications (at most `count`) that brought a newer event time: seconds from that to the publication.

    Oldest first. A backfill of old days brings none, so it is not in the way.
    """
    with connect(settings) as connection:
        rows: list[Any] = connection.execute(
            "select relation, array_agg(seconds order by publication_id) from (select relation, publication_id, max_event_timestamp,"
            " extract(epoch from published_at - max_event_timestamp)::double precision as seconds,"
            " max(max_event_timestamp) over (partition by relation order by publication_id"
            " rows between unbounded preceding and 1 preceding) as known from unnest(%s::text[]) as given(relation) cross join lateral"
            " (select publication_id, published_at, max_event_timestamp from ops.publications p where p.relation = given.relation"
            " and rows_published > 0 order by partition_key desc, publication_id desc limit %s) newest) delays"
            " where known is null or max_event_timestamp > known group by relation",
            [list(relations), count],
        ).fetchall()
    return dict(rows)
