"""PostgreSQL and Redis from wheels, for machines where nothing is installed. Connecting to them and using them does not belong here."""

from featurestore_dagster.stores.embedded.services import EmbeddedServices, ServiceStatus, Started, last_known_settings, running_settings

__all__ = ["EmbeddedServices", "ServiceStatus", "Started", "last_known_settings", "running_settings"]
