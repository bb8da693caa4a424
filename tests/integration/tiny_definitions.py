"""The smallest code location, for the tests of the process tree: one asset, which never ends, and one sensor, which only ticks."""

import time

import dagster as dg


@dg.asset
def endless() -> None:
    """Keeps a run worker busy until somebody ends it."""
    while True:
        time.sleep(60)


@dg.sensor(target=endless, minimum_interval_seconds=1, default_status=dg.DefaultSensorStatus.RUNNING)
def ticking() -> dg.SkipReason:
    """Gives a heartbeat."""
    return dg.SkipReason("it only ticks")


defs = dg.Definitions(assets=[endless], sensors=[ticking])
