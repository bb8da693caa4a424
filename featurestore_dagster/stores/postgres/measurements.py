"""What rows and partitions cost: seconds from the ledger, bytes from the server. What is estimated with it belongs to the callers."""

from dataclasses import dataclass

from featurestore_dagster.settings import PostgresSettings
from featurestore_dagster.stores.postgres.connection import connect

RECENT = 2_000
"""Publications of a relation that are looked at: formulas and machines change."""


@dataclass(frozen=True)
class Measurements:
    """Over one database."""

    settings: PostgresSettings

    def seconds_per_partition(self, relation: str) -> float | None:
        """Of the greatest recent batch of a relation, whose fixed costs weigh least; None before the first one."""
        query = (
            "select avg(seconds) from (select batch_id, seconds from ops.publications where relation = %s"
            " order by publication_id desc limit %s) recent where seconds is not null group by batch_id order by count(*) desc limit 1"
        )
        with connect(self.settings) as connection:
            row = connection.execute(query, [relation, RECENT]).fetchone()
        return None if row is None else float(row[0])

    def bytes_per_row(self, schema: str, table: str) -> float | None:
        """With indexes; None where the server has not counted the table's rows yet."""
        query = (
            "select sum(pg_total_relation_size(part.oid)), sum(greatest(part.reltuples, 0)) from pg_partition_tree(%s::regclass) tree"
            " join pg_class part on part.oid = tree.relid where tree.isleaf"
        )
        with connect(self.settings) as connection:
            row = connection.execute(query, [f'"{schema}"."{table}"']).fetchone()
        return float(row[0]) / float(row[1]) if row and row[1] else None
