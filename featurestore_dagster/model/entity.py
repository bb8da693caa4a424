"""Entities: what a feature row is about. Which symbols exist does not belong here (see `Source.listings`)."""

from dataclasses import dataclass

from featurestore_dagster.model.time import Timeframe

TIMEFRAMES = tuple(timeframe.value for timeframe in Timeframe)


@dataclass(frozen=True)
class Entity:
    """A thing with features, and the one column that identifies it."""

    name: str
    join_key: str
    description: str


def parse_entity_id(entity_id: str) -> tuple[str, str | None]:
    """Symbol and timeframe of the shorthand `BTCUSDT_1h`; an id that does not end in `_` and a timeframe is a symbol, without one."""
    symbol, _, timeframe = entity_id.rpartition("_")
    return (symbol, timeframe) if symbol and timeframe in TIMEFRAMES else (entity_id, None)
