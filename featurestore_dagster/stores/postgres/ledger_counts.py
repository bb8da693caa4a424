"""The ledger, the quarantine and the quality log as counts, for a reader that asks again and again.

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
    """What the ledger got after a publication: its newest id, row versions published by relation, and restatements.

    A restatement is (relation, seconds from the publication of the newest input to that of the features): a publication of features at
    event times which its partition had published before.
    """

    last_publication_id: int
    rows: dict[str, int]
    restatements: list[tuple[str, float]]


@dataclass(frozen=True)
class Refused:
    """By relation: rows ever refused, those still open, and partitions whose last audit blocked them."""

    rows: dict[str, int]
    rows_open: dict[str, int]
    blocked: dict[str, int]


def publications_after(settings: PostgresSettings, publication_id: int) -> NewPublications:
    """Counts of the publications after this one."""
    with connect(settings) as connection:
        connection.execute("set transaction isolation level repeatable read, read only")
        newest = connection.execute("select coalesce(max(publication_id), 0) from ops.publications").fetchone()
        rows: list[Any] = connection.execute(
            "select relation, sum(rows_published)::bigint from ops.publications where publication_id > %s group by relation",
            [publication_id],
        ).fetchall()
        restatements: list[Any] = connection.execute(
            "select p.relation, extract(epoch from p.published_at - max(input.published_at))::double precision"
            " from ops.publications p cross join lateral jsonb_each_text(p.inputs) as read(name, id)"
            " join ops.publications input on input.publication_id = read.id::bigint"
            " where p.publication_id > %s and p.rows_published > 0 and starts_with(p.relation, 'features.')"
            " and exists (select from ops.publications e where e.relation = p.relation and e.partition_key = p.partition_key"
            " and e.publication_id < p.publication_id and e.rows_published > 0"
            " and e.max_event_timestamp >= (p.changed ->> 'start')::timestamptz)"
            " group by p.publication_id, p.relation, p.published_at",
            [publication_id],
        ).fetchall()
    return NewPublications(newest[0] if newest else 0, dict(rows), [(relation, max(seconds, 0.0)) for relation, seconds in restatements])


def refused(settings: PostgresSettings) -> Refused:
    """Counts of the quarantine and of blocked partitions, as they are now."""
    with connect(settings) as connection:
        rows: list[Any] = connection.execute(
            "select relation, count(*), count(*) filter (where status = 'open') from ops.quarantine group by relation"
        ).fetchall()
        blocked: list[Any] = connection.execute(
            "select relation, count(*) from ops.quality_log log where outcome = 'blocked' and not exists (select from ops.quality_log later"
            " where later.relation = log.relation and later.partition_key = log.partition_key"
            " and later.quality_log_id > log.quality_log_id) group by relation"
        ).fetchall()
    return Refused({name: count for name, count, _ in rows}, {name: count for name, _, count in rows}, dict(blocked))


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
