"""Entities: what a feature row is about. Which symbols exist does not belong here (see `Source.listings`)."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Entity:
    """A thing with features, and the one column that identifies it."""

    name: str
    join_key: str
    description: str


def parse_entity_id(entity_id: str) -> tuple[str, str]:
    """Split the shorthand `BTCUSDT_1h` at its last underscore into symbol and timeframe.

    Raises:
        ValueError: There is no underscore, or a part is empty.
    """
    symbol, _, timeframe = entity_id.rpartition("_")
    if not symbol or not timeframe:
        raise ValueError(f"entity id {entity_id!r} is not SYMBOL_TIMEFRAME, for example BTCUSDT_1h")
    return symbol, timeframe
