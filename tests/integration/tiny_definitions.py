"""The smallest code location, for the tests of the process tree: one asset, which never ends."""

import time

import dagster as dg


@dg.asset
def endless() -> None:
    """Keeps a run worker busy until somebody ends it."""
    while True:
        time.sleep(60)


defs = dg.Definitions(assets=[endless])
