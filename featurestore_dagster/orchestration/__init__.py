"""Dagster's side: assets, checks, partitions, jobs, schedules and sensors, all derived from the catalogue.

Thin on purpose: an asset body reads, calls one function, publishes. Only this package and `definitions` import dagster.
"""

import warnings

from dagster import BetaWarning, PreviewWarning

# Partitioned checks (preview) and backfill policies (beta) are used on purpose: the lock pins the version that they were measured on.
warnings.filterwarnings("ignore", category=PreviewWarning)
warnings.filterwarnings("ignore", category=BetaWarning)
