"""What the UI shows of an asset: column schema, plots, tables of features and of failed checks. Column lineage is in `lineage`."""

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
from featurestore_dagster.pipeline.drift import FeatureDrift
from featurestore_dagster.pipeline.verdict import PartitionAudit
from featurestore_dagster.projections.data_dictionary import FEATURE_COLUMNS, feature_row
from featurestore_dagster.projections.postgres_table import PostgresTable

PLOT_WIDTH, PLOT_HEIGHT, PLOT_MARGIN = 520, 120, 6
PLOT_COLOURS = ("#4f43dd", "#00a3a3", "#d97706", "#b91c1c", "#15803d", "#7c3aed", "#0369a1")
PLOT_POINTS = 260
HISTOGRAMS, HISTOGRAM_BARS, HISTOGRAM_WIDTH, HISTOGRAM_HEIGHT = 40, 24, 168, 32


def table_schema(table: PostgresTable) -> dg.TableSchema:
    """Columns with types and descriptions, for the asset's page."""
    return dg.TableSchema(
        [
            dg.TableColumn(column.name, column.type, column.comment, dg.TableColumnConstraints(nullable=column.nullable))
            for column in table.columns
        ]
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


def rows_metadata(partitions: Mapping[str, pl.DataFrame]) -> dict[str, dict[str, Any]]:
    """Row count, flags and NULL counts of each partition's rows, counted for all of them at once.

    Args:
        partitions: Partition key -> rows, all of one schema with a column `flags`; any number of partitions and rows.
    """
    if not partitions:
        return {}
    metadata: dict[str, dict[str, Any]] = {key: {"dagster/row_count": rows.height} for key, rows in partitions.items()}
    labels = pl.Series("partition_key", [key for key, rows in partitions.items() for _ in range(rows.height)], pl.String)
    rows = pl.concat(partitions.values())
    flags = [(pl.col("flags") & QualityFlag[name].value != 0).sum().alias(name) for name in QualityFlag.counts(rows["flags"])]
    holes = [name for name, count in rows.null_count().row(0, named=True).items() if count]
    for title, counts in (("flags", flags), ("nulls", [pl.col(name).null_count() for name in holes])):
        for key, *found in rows.group_by(labels).agg(counts).iter_rows():
            if shown := {name.meta.output_name(): count for name, count in zip(counts, found, strict=True) if count}:
                metadata[key][title] = dg.MetadataValue.json(shown)
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
    return dg.MetadataValue.md(_image(PLOT_WIDTH, PLOT_HEIGHT + 20, title, "".join(lines) + legend))


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
    """One line for the asset; what its features are is in `features_table`."""
    superseded = f", version {view.version}, superseded" if view.is_superseded else ""
    return f"{view.description} ({stream.market}, {stream.timeframe}{superseded})"


def features_table(view: FeatureView) -> dg.TableMetadataValue:
    """A line for each feature: unit, range, grain, formula."""
    columns = ("feature", "unit", "range", "grain", "formula")
    rows = [dict(zip(FEATURE_COLUMNS, feature_row(feature), strict=True)) for feature in view.features]
    return dg.MetadataValue.table(
        [dg.TableRecord({name: row[name] for name in columns}) for row in rows],
        schema=dg.TableSchema([dg.TableColumn(name, "text") for name in columns]),
    )


def distributions(rows: pl.DataFrame, view: FeatureView) -> dg.MarkdownMetadataValue:
    """A histogram of each feature's values with their least, median and greatest one and the share of NULLs.

    Bounded whatever the view: 24 bars a feature, 40 features; each is an inline SVG image.

    Args:
        rows: Columns of the view's features; any number of rows.
        view: Declares order and units.
    """
    lines = ["| feature | distribution | least | median | greatest | unit | NULL |", "|---|---|---|---|---|---|---|"]
    for feature in view.features[:HISTOGRAMS]:
        values = rows[feature.name].drop_nulls().cast(pl.Float64)
        nulls = f"{rows[feature.name].null_count() / rows.height:.0%}" if rows.height else "-"
        figures = [f"{value:.4g}" if isinstance(value, float) else "-" for value in (values.min(), values.median(), values.max())]
        lines.append(
            f"| {feature.name} | {_histogram(values, feature.name)} | {' | '.join(figures)} | {feature.indicator.unit} | {nulls} |"
        )
    if len(view.features) > HISTOGRAMS:
        lines.append(f"\n{len(view.features) - HISTOGRAMS} more features are not drawn.")
    return dg.MetadataValue.md("\n".join(lines))


def _histogram(values: pl.Series, name: str) -> str:
    if values.is_empty():
        return ""
    counts = values.hist(bin_count=HISTOGRAM_BARS)["count"].to_list() if values.n_unique() > 1 else [values.len()]
    width = HISTOGRAM_WIDTH / len(counts)
    steps = "".join(
        f"V{HISTOGRAM_HEIGHT * (1 - count / max(counts)):.0f}H{width * (number + 1):.0f}" for number, count in enumerate(counts)
    )
    path = f"M0 {HISTOGRAM_HEIGHT}{steps}V{HISTOGRAM_HEIGHT}Z"
    return _image(HISTOGRAM_WIDTH, HISTOGRAM_HEIGHT, f"distribution of {name}", f'<path fill="{PLOT_COLOURS[0]}" d="{path}"/>')


def drift_table(found: Sequence[FeatureDrift]) -> dg.MarkdownMetadataValue:
    """A line for each feature, the drifted ones first: its values now as bars, those of the reference as an outline, PSI and NULLs.

    At most 40 features; each picture is an inline SVG image.
    """
    ordered = sorted(found, key=lambda feature: (not feature.reasons, -(feature.psi or 0.0)))
    lines = ["| feature | now (bars), before (line) | PSI | NULL now | NULL before | verdict |", "|---|---|---|---|---|---|"]
    for feature in ordered[:HISTOGRAMS]:
        psi = "-" if feature.psi is None else f"{feature.psi:.3f}"
        verdict = "; ".join(feature.reasons) or feature.unjudged or "ok"
        nulls = f"{feature.null_share:.1%} | {feature.reference.null_share:.1%}"
        lines.append(f"| {feature.feature} | {_compared(feature)} | {psi} | {nulls} | {verdict} |")
    if len(ordered) > HISTOGRAMS:
        lines.append(f"\n{len(ordered) - HISTOGRAMS} more features are not drawn.")
    return dg.MetadataValue.md("\n".join(lines))


def _compared(feature: FeatureDrift) -> str:
    """Shares of both windows in the deciles of the reference, at one scale."""
    highest = max((*feature.shares, *feature.reference.shares), default=0.0)
    if not highest:
        return ""
    width = HISTOGRAM_WIDTH / len(feature.shares)
    tops = [[HISTOGRAM_HEIGHT * (1 - share / highest) for share in shares] for shares in (feature.shares, feature.reference.shares)]
    bars, outline = ("".join(f"V{top:.0f}H{width * (number + 1):.0f}" for number, top in enumerate(each)) for each in tops)
    colour = PLOT_COLOURS[3] if feature.reasons else PLOT_COLOURS[0]
    drawing = (
        f'<path fill="{colour}" fill-opacity=".55" d="M0 {HISTOGRAM_HEIGHT}{bars}V{HISTOGRAM_HEIGHT}Z"/>'
        f'<path fill="none" stroke="#64748b" d="M0 {HISTOGRAM_HEIGHT}{outline}V{HISTOGRAM_HEIGHT}"/>'
    )
    return _image(HISTOGRAM_WIDTH, HISTOGRAM_HEIGHT, f"{feature.feature} now and before", drawing)


def _image(width: int, height: int, title: str, drawing: str) -> str:
    """Markdown of an inline SVG image with an alternative text."""
    size = f'width="{width}" height="{height}"'
    svg = f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img"><title>{escape(title)}</title>{drawing}</svg>'
    return f"![{title}](data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()})"


def describe_dataset(dataset: Dataset, sources: Mapping[str, str]) -> str:
    """Markdown for a raw asset's page: what it holds and who delivers it."""
    delivered = "; ".join(f"**{name}**: {text}" for name, text in sources.items())
    return f"{dataset.description}. Calendar {dataset.calendar}, {dataset.timeframe}; append-only.\n\nSources: {delivered}."


def as_json(value: object) -> dg.JsonMetadataValue:
    """Any JSON-able value as metadata; instants become ISO text."""
    return dg.MetadataValue.json(json.loads(json.dumps(value, default=str)))
