"""PostgreSQL: raw tables, feature tables and the ledger."""

from featurestore_dagster.stores.postgres.alerts import AlertStore
from featurestore_dagster.stores.postgres.ledger import Block, Ledger, PartitionState, QuarantinedRow
from featurestore_dagster.stores.postgres.publishing import Publication
from featurestore_dagster.stores.postgres.store import OnlineChanges, PostgresStore

__all__ = ["AlertStore", "Block", "Ledger", "OnlineChanges", "PartitionState", "PostgresStore", "Publication", "QuarantinedRow"]
