"""What the UI shows of an asset: column schema, column lineage, plots and tables of failed checks. No computation of features."""

import base64
import json
from collections.abc import Mapping, Sequence
from typing import Any
from xml.sax.saxutils import escape

import dagster as dg
import polars as pl

from featurestore_dagster.model.feature_view import FeatureView, Stream
from featurestore_dagster.model.flags import QualityFlag
from featurestore_dagster.model.raw_table import Dataset
from featurestore_dagster.orchestration import asset_keys
from featurestore_dagster.pipeline.audit import PartitionAudit
from featurestore_dagster.projections.postgres_table import PostgresTable

PLOT_WIDTH, PLOT_HEIGHT, PLOT_MARGIN = 520, 120, 6
PLOT_COLOURS = ("#4f43dd", "#00a3a3", "#d97706", "#b91c1c", "#15803d", "#7c3aed", "#0369a1")
PLOT_POINTS = 260


def table_schema(table: PostgresTable) -> dg.TableSchema:
    """Columns with types and descriptions, for the asset's page."""
    return dg.TableSchema(
        [
            dg.TableColumn(column.name, column.type, column.comment, dg.TableColumnConstraints(nullable=column.nullable))
            for column in table.columns
        ]
    )


def column_lineage(view: FeatureView, stream: Stream) -> dg.TableColumnLineage:
    """Feature -> raw columns that its indicator reads; an adjusted price also reads the corporate actions."""
    spine = stream.inputs[0]
    actions = [dataset for dataset in stream.inputs[1:] if dataset.table.name == "corporate_actions"]
    raw_columns = {column.name for column in spine.table.columns}

    def sources(name: str, *, adjusted: bool) -> list[dg.TableColumnDep]:
        column = name.removeprefix("raw_")
        found = []
        if name == "adjustment_factor" or (adjusted and column in raw_columns):
            found += [dg.TableColumnDep(asset_keys.raw(dataset), part) for dataset in actions for part in ("ratio", "cash_amount")]
        if column in raw_columns:
            found.append(dg.TableColumnDep(asset_keys.raw(spine), column))
        elif name.startswith("spy_"):
            found.append(dg.TableColumnDep(asset_keys.raw(spine), "close"))
        elif view.mart is not None:
            found.append(dg.TableColumnDep(asset_keys.mart(view.mart), "value"))
        return found

    return dg.TableColumnLineage(
        {
            feature.name: list(
                dict.fromkeys(
                    dep
                    for name in feature.input_columns
                    for dep in sources(name, adjusted=feature.indicator.adjusted and not name.startswith("raw_"))
                )
            )
            for feature in view.features
        }
    )


def checks_metadata(audit: PartitionAudit) -> dict[str, Any]:
    """Verdict as check metadata: counts, and a table of failed checks with example rows."""
    metadata: dict[str, Any] = {"rows_good": audit.rows_good, "rows_quarantined": audit.rows_quarantined}
    if audit.rows_expected is not None:
        metadata["rows_expected"] = audit.rows_expected
    if audit.failed:
        records = [
            dg.TableRecord({"check": check.name, "blocks": check.blocking, "rows": check.rows, "examples": "\n".join(check.examples)})
            for check in audit.failed
        ]
        metadata["failed_checks"] = dg.MetadataValue.table(records)
    return metadata


def rows_metadata(rows: pl.DataFrame) -> dict[str, Any]:
    """Row count, flags and NULL counts of one partition's rows."""
    metadata: dict[str, Any] = {"dagster/row_count": rows.height}
    if rows.height:
        if counts := QualityFlag.counts(rows["flags"]):
            metadata["flags"] = dg.MetadataValue.json(counts)
        nulls = {name: count for name, count in rows.null_count().row(0, named=True).items() if count}
        if nulls:
            metadata["nulls"] = dg.MetadataValue.json(nulls)
    return metadata


def plot(rows: pl.DataFrame, column: str, by: str, title: str) -> dg.MarkdownMetadataValue:
    """Lines of one column over event time, one per entity, each scaled to its own range, as an inline SVG image.

    Args:
        rows: Columns `event_timestamp`, `by` and `column`; NULLs are left out.
        column: Numeric.
        by: Entity column.
        title: Alternative text.
    """
    drawn = rows.select("event_timestamp", by, column).drop_nulls().sort("event_timestamp")
    lines = []
    names = sorted(set(drawn[by]))[: len(PLOT_COLOURS)]
    for colour, name in zip(PLOT_COLOURS, names, strict=False):
        values = drawn.filter(pl.col(by) == name)[column].tail(PLOT_POINTS).to_list()
        lines.append(f'<polyline fill="none" stroke="{colour}" stroke-width="1.5" points="{_points(values)}"/>')
    legend = "".join(
        f'<text x="{PLOT_MARGIN + 70 * number}" y="{PLOT_HEIGHT + 14}" font-size="11" font-family="sans-serif" fill="{colour}">'
        f"{escape(str(name))}</text>"
        for number, (colour, name) in enumerate(zip(PLOT_COLOURS, names, strict=False))
    )
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{PLOT_WIDTH}" height="{PLOT_HEIGHT + 20}" role="img">'
        f"<title>{escape(title)}</title>{''.join(lines)}{legend}</svg>"
    )
    return dg.MetadataValue.md(f"![{title}](data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()})")


def _points(values: Sequence[float]) -> str:
    low, high = min(values), max(values)
    span, step = (high - low) or 1.0, (PLOT_WIDTH - 2 * PLOT_MARGIN) / max(len(values) - 1, 1)
    if len(values) == 1:
        values = [values[0], values[0]]
        step = PLOT_WIDTH - 2 * PLOT_MARGIN
    return " ".join(
        f"{PLOT_MARGIN + number * step:.1f},{PLOT_HEIGHT - PLOT_MARGIN - (value - low) / span * (PLOT_HEIGHT - 2 * PLOT_MARGIN):.1f}"
        for number, value in enumerate(values)
    )


def describe_view(view: FeatureView, stream: Stream) -> str:
    """Markdown for the asset's page: what it is, its promises and its features."""
    lines = [
        f"{view.description} ({stream.market}, {stream.timeframe}).",
        "",
        f"SLO: served {view.slo.max_lag} after due. TTL {view.ttl} of open-market time. Calendar {stream.calendar}.",
        f"Feature set version {view.version}.",
        "",
        "| feature | unit | formula |",
        "|---|---|---|",
    ]
    lines += [f"| {feature.name} | {feature.indicator.unit} | {feature.formula.replace('|', '/')} |" for feature in view.features]
    return "\n".join(lines)


def describe_dataset(dataset: Dataset, sources: Mapping[str, str]) -> str:
    """Markdown for a raw asset's page: what it holds and who delivers it."""
    delivered = "; ".join(f"**{name}**: {text}" for name, text in sources.items())
    return f"{dataset.description}. Calendar {dataset.calendar}, {dataset.timeframe}; append-only.\n\nSources: {delivered}."


def as_json(value: object) -> dg.JsonMetadataValue:
    """Any JSON-able value as metadata; instants become ISO text."""
    return dg.MetadataValue.json(json.loads(json.dumps(value, default=str)))
