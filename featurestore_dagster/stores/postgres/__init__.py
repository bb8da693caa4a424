"""PostgreSQL: raw tables, feature tables and the ledger."""

from featurestore_dagster.stores.postgres.ledger import Ledger, PartitionState, QuarantinedRow
from featurestore_dagster.stores.postgres.store import OnlineChanges, PostgresStore, Publication

__all__ = ["Ledger", "OnlineChanges", "PartitionState", "PostgresStore", "Publication", "QuarantinedRow"]
