"""From raw rows to audited feature rows: adjustment, computation, checks, and the write-audit-publish loop.

Frames in, frames out, one place for each rule. Dagster, Redis and SQL do not belong here.
"""
