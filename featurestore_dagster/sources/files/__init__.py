"""The drop folder: CSV and Parquet files with a declared mapping. How the folder is polled and what is audited do not belong here."""

from featurestore_dagster.sources.files.landing import LandedFile, RefusedFile, fetch, landed, pending, take

__all__ = ["LandedFile", "RefusedFile", "fetch", "landed", "pending", "take"]
