"""PostgreSQL: raw tables, feature tables and the ledger."""

from featurestore_dagster.stores.postgres.ledger import Ledger, PartitionState, QuarantinedRow
from featurestore_dagster.stores.postgres.publishing import Publication
from featurestore_dagster.stores.postgres.store import OnlineChanges, PostgresStore

__all__ = ["Ledger", "OnlineChanges", "PartitionState", "PostgresStore", "Publication", "QuarantinedRow"]
