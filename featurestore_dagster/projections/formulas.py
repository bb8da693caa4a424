"""Declarations -> `schemas/formulas.json`: what each version of each view computes, so that a formula cannot change under its number.

A formula is recorded as its declared text and as what it gives on a fixed frame. Values, not the expression's tree: rewriting an
expression without changing its values needs no new version, a new Polars may print trees otherwise, and the last bits of a sum may differ
between machines, so they are compared with the tolerance by which published values are told apart. Computing features does not belong here.
"""

import json
import math
import random
import zlib
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

import polars as pl

from featurestore_dagster.errors import DeclarationError
from featurestore_dagster.model.catalogue import Catalogue
from featurestore_dagster.model.indicator import Feature, Grain
from featurestore_dagster.model.raw_table import UTC_MICROSECONDS

FORMULAS_FILE = "schemas/formulas.json"
RELATIVE_TOLERANCE = 1e-9
SIGNIFICANT_DIGITS = 12

PROBE_ROWS = 640
PROBE_START = datetime(2001, 1, 2, 21, tzinfo=UTC)
AGGREGATES = (Grain.EVENTS, Grain.QUOTES)
"""Grains whose expressions give one value for a whole window of rows."""
WINDOW_ROWS = 16

PRICES = ("open", "high", "low", "close")
RANGES = {"score": (-1.0, 1.0), "confidence": (0.0, 1.0), "rating": (1.0, 5.0), "position": (-1.0, 1.0)}
"""Least and greatest value of columns that are not positive quantities."""
TEXTS = {"source_type": ("news", "social", "analyst", "news"), "firm": ("A", "B", "C")}

Entry = dict[str, Any]
"""What is recorded of a feature: formula with parameters, unit, grain, components, and [NULLs, weighted mean, mean size] of its values."""


def formulas_file(catalogue: Catalogue, committed: str) -> str:
    """Text of the file: what is committed, and the versions and features of the catalogue that it does not hold yet.

    A feature that is new in a version changes none of its others. Versions that are no longer declared stay, so that their numbers are not
    used again.

    Raises:
        DeclarationError: A committed version computes something else now; the message names the features and says what to do.
    """
    recorded: dict[str, dict[str, dict[str, Entry]]] = json.loads(committed)
    problems = []
    for view in catalogue.views:
        declared = _entries(view.features, catalogue, {member.name: member.version for member in view.members})
        versions = recorded.setdefault(view.name, {})
        held = versions.get(str(view.version), {})
        if changes := _changes(held, declared):
            following = max(map(int, versions)) + 1
            problems.append(
                f"view {view.name}, version {view.version}: {'; '.join(changes)}. Published rows of version {view.version} hold the old "
                f"values: raise `version` of view {view.name} to {following}; keep the old declaration with `.superseded()` if it is still "
                f"read. To undo, restore the declaration. If version {view.version} was never published anywhere, delete it from "
                f"{FORMULAS_FILE} and generate again."
            )
        versions[str(view.version)] = {name: held.get(name, entry) for name, entry in declared.items()}
    if problems:
        raise DeclarationError("\n".join(problems))
    return _text(recorded)


def _changes(held: Mapping[str, Entry], declared: Mapping[str, Entry]) -> list[str]:
    """What has become of the features that were recorded, a phrase for each change."""
    if gone := [name for name in held if name not in declared]:
        return [f"gone: {', '.join(gone)}"]
    if [name for name in declared if name in held] != list(held):
        return ["the features are in another order"]
    return [f"{name}: {change}" for name, entry in held.items() if (change := _change(entry, declared[name]))]


def _change(held: Entry, declared: Entry) -> str:
    for part in ("formula", "unit", "grain", "price_exponent", "member_version"):
        if held.get(part) != declared.get(part):
            return f"{part} was {held.get(part)!r}, is {declared.get(part)!r}"
    held_parts, parts = held.get("components", {}), declared.get("components", {})
    if changes := [*_changes(held_parts, parts), *(f"new: {name}" for name in parts if name not in held_parts)]:
        return f"components: {'; '.join(changes)}"
    (nulls, mean, size), (new_nulls, new_mean, new_size) = held["values"], declared["values"]
    tolerance = RELATIVE_TOLERANCE * max(size, new_size)
    if nulls != new_nulls or abs(mean - new_mean) > tolerance or abs(size - new_size) > tolerance:
        return f"the same text gives other values: [NULLs, mean, mean size] were {held['values']}, are {declared['values']}"
    return ""


def _entries(features: Iterable[Feature], catalogue: Catalogue, members: Mapping[str, int]) -> dict[str, Entry]:
    return {feature.name: _entry(feature, catalogue, members) for feature in features}


def _entry(feature: Feature, catalogue: Catalogue, members: Mapping[str, int]) -> Entry:
    declared = feature.indicator
    entry: Entry = {"formula": feature.formula, "unit": declared.unit.value, "grain": declared.grain.value}
    if declared.adjusted and declared.price_exponent:
        entry["price_exponent"] = declared.price_exponent
    if declared.grain is Grain.PUBLISHED:
        entry["member_version"] = members[feature.name.partition("__")[0]]
    if components := _entries(feature.components, catalogue, members):
        entry["components"] = components
    return entry | {"values": _summary(probe_values(feature, catalogue))}


def probe_values(feature: Feature, catalogue: Catalogue) -> pl.Series:
    """The feature on the fixed frame: bars that move, with splits, bars without trade and one missing bar; other columns as they are typed.

    An aggregate is evaluated over consecutive windows of 16 rows, and over none.

    Raises:
        DeclarationError: The expression cannot be evaluated on such columns.
    """
    try:
        expression = feature.expression()
        frame = _probe(expression.meta.root_names(), catalogue)
        for component in feature.components:
            values = probe_values(component, catalogue).shift(1 if component.indicator.grain is Grain.DAILY else 0)
            frame = frame.with_columns(values.extend_constant(None, max(0, frame.height - values.len())).head(frame.height))
        if feature.indicator.grain in AGGREGATES:
            windows = frame.group_by(pl.int_range(pl.len()) // WINDOW_ROWS, maintain_order=True).agg(expression)
            return pl.concat([windows[feature.name].cast(pl.Float64), frame.clear().select(expression).to_series().cast(pl.Float64)])
        return frame.select(expression.cast(pl.Float64)).to_series()
    except pl.exceptions.PolarsError as error:
        raise DeclarationError(f"{feature.name} cannot be evaluated on the columns of {__name__}: {error}") from error


def _summary(values: pl.Series) -> list[float]:
    present = [
        (1 + number * 0.618034 % 1, value) for number, value in enumerate(values.to_list()) if value is not None and math.isfinite(value)
    ]
    weight = math.fsum(part for part, _ in present) or 1.0
    mean, size = (math.fsum(part * of(value) for part, value in present) / weight for of in (float, abs))
    return [values.len() - len(present), *(float(f"{value:.{SIGNIFICANT_DIGITS}g}") for value in (mean, size))]


def _probe(names: Iterable[str], catalogue: Catalogue) -> pl.DataFrame:
    """Columns of these names over `PROBE_ROWS` rows."""
    known = {series.name: series for series in (*_bars(), *_book())}
    types = {column.name: column.dtype for table in catalogue.raw_tables for column in table.all_columns}
    wanted = dict.fromkeys(["open", *names])
    return pl.DataFrame([known[name] if name in known else _column(name, types.get(name, pl.Float64())) for name in wanted])


@cache
def _bars() -> pl.DataFrame:
    generator = random.Random(20010102)  # noqa: S311 - the same numbers on every machine
    level, rows = 5_000, []
    for number in range(PROBE_ROWS):
        opened = level + generator.randrange(-30, 31)
        level = max(1_000, opened + generator.randrange(-60, 61))
        high, low = max(opened, level) + generator.randrange(1, 20), min(opened, level) - generator.randrange(1, 20)
        volume = 0 if number % 97 == 41 else generator.randrange(1, 1_000_000)
        rows.append((opened / 100, high / 100, low / 100, level / 100, float(volume)))
    raw = pl.DataFrame(rows, schema=dict.fromkeys((*PRICES, "volume"), pl.Float64()), orient="row")
    position = pl.int_range(pl.len())
    split = pl.when(position >= PROBE_ROWS // 3).then(2.0).otherwise(1.0)
    factor = split * pl.when(position >= PROBE_ROWS // 2).then(1.01).otherwise(1.0)
    present = position != PROBE_ROWS - 40
    bars = raw.with_columns(
        *(pl.col(name).alias(f"raw_{name}") for name in raw.columns),
        *(pl.col(name) * factor for name in PRICES),
        pl.col("volume") / split,
        factor.alias("adjustment_factor"),
    )
    return bars.with_columns(pl.when(present).then(pl.col(name)).alias(name) for name in bars.columns if name != "adjustment_factor")


@cache
def _book() -> pl.DataFrame:
    """In each window the best level of eight quotes, then eight levels of the newest; some windows have no newest one, or a crossed one."""
    generator = random.Random(20010103)  # noqa: S311 - the same numbers on every machine
    rows = []
    for number in range(PROBE_ROWS):
        window, place = divmod(number, WINDOW_ROWS)
        is_newest = place >= WINDOW_ROWS // 2 and window % 7 != 3
        level = place % (WINDOW_ROWS // 2) if place >= WINDOW_ROWS // 2 else 0
        half = (-0.02 if window % 7 == 5 else 0.02) * (level + 1)
        quantities = [float(generator.randrange(1, 5_000)) for _ in range(2)]
        rows.append((level, is_newest, 100 - half, 100.01 + half, *quantities, float(generator.randrange(8)), 60.0))
    names = ("level", "is_newest", "bid_price", "ask_price", "bid_quantity", "ask_quantity", "valid_seconds", "bar_seconds")
    return pl.DataFrame(rows, schema=list(names), orient="row")


@cache
def _column(name: str, dtype: pl.DataType) -> pl.Series:
    """Text, a clock, or a walk over 75 units that starts below 0 unless it is a price; seeded by the column's name."""
    generator = random.Random(zlib.crc32(name.encode()))  # noqa: S311 - the same numbers on every machine
    rows = range(PROBE_ROWS)
    values: list[Any]
    if dtype == UTC_MICROSECONDS or name.endswith("_at"):
        return pl.Series(name, [PROBE_START + timedelta(minutes=number) for number in rows], dtype=UTC_MICROSECONDS)
    if dtype == pl.Date():
        values = [PROBE_START.date() + timedelta(days=number) for number in rows]
    elif dtype == pl.String():
        values = [generator.choice(TEXTS[name]) if name in TEXTS else f"{number}" for number in rows]
    elif name.startswith("is_"):
        values = [number % 3 == 0 for number in rows]
    elif name.endswith("_seconds"):
        values = [float(generator.randrange(7_200)) for _ in rows]
    elif name in RANGES:
        low, high = RANGES[name]
        values = [low + (high - low) * generator.random() for _ in rows]
    else:
        values = _walk(generator, lowest=500 if name.endswith("_close") else -1_000)
    return pl.Series(name, values)


def _walk(generator: random.Random, lowest: int) -> list[float]:
    level, values = 2_500, []
    for _ in range(PROBE_ROWS):
        level += generator.randrange(-900, 901)
        values.append((lowest + abs(level % 15_000 - 7_500)) / 100)
    return values


def _text(recorded: Mapping[str, Mapping[str, Mapping[str, Entry]]]) -> str:
    """One line for each feature, so that a review shows what changed."""
    views = []
    for view, versions in sorted(recorded.items()):
        parts = []
        for version, features in sorted(versions.items(), key=lambda item: int(item[0])):
            lines = ",\n".join(f"      {json.dumps(name)}: {json.dumps(entry)}" for name, entry in features.items())
            parts.append(f"    {json.dumps(version)}: {{\n{lines}\n    }}")
        views.append(f"  {json.dumps(view)}: {{\n" + ",\n".join(parts) + "\n  }")
    return "{\n" + ",\n".join(views) + "\n}\n"
