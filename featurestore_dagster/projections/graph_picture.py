"""Declarations -> docs/images/graph.svg: datasets, marts, views and online rows, and what feeds what. The live graph is Dagster's."""

from dataclasses import dataclass
from xml.sax.saxutils import escape

from featurestore_dagster.model.catalogue import Catalogue
from featurestore_dagster.model.feature_view import FeatureView
from featurestore_dagster.model.raw_table import Dataset

TOP, ROW, BOX_HEIGHT, FIRST_BOX = 40, 50, 40, 60
COLUMNS = {
    "raw: fetch, audit, publish": (20, 230, "#e8f1fb", "#2b6cb0"),
    "macro: dbt": (380, 150, "#fdf1e0", "#b7791f"),
    "views: compute, audit, publish": (640, 240, "#e9f7ec", "#2f855a"),
    "online: sync by the ledger": (950, 280, "#f3ecfb", "#6b46c1"),
}
WIDTH = 1250


@dataclass(frozen=True)
class _Box:
    name: str
    note: str
    column: str
    middle: float

    @property
    def left(self) -> int:
        return COLUMNS[self.column][0]

    @property
    def right(self) -> int:
        return self.left + COLUMNS[self.column][1]

    def drawn(self) -> str:
        x, width, fill, stroke = COLUMNS[self.column]
        top = self.middle - BOX_HEIGHT / 2
        return (
            f'<rect x="{x}" y="{top:g}" width="{width}" height="{BOX_HEIGHT}" rx="6" fill="{fill}" stroke="{stroke}"/>\n'
            f'<text x="{x + 10}" y="{top + 17:g}" font-size="13" font-weight="600" fill="#1a202c">{escape(self.name)}</text>\n'
            f'<text x="{x + 10}" y="{top + 33:g}" font-size="11.5" fill="#4a5568">{escape(self.note)}</text>'
        )


def graph_picture(catalogue: Catalogue) -> str:
    """SVG text. Datasets are ordered by the first view that reads them, so that few lines cross."""
    views = [view for view in catalogue.views if not view.is_superseded]
    readers = {dataset.name: [place for place, view in enumerate(views) if dataset in _inputs(view)] for dataset in catalogue.datasets}
    datasets = sorted(catalogue.datasets, key=lambda dataset: readers[dataset.name] or [len(views)])
    marts = list(dict.fromkeys(view.mart for view in views if view.mart))
    height = FIRST_BOX + ROW * max(len(datasets), len(views)) + 10
    raw, mart, computed, online = COLUMNS
    boxes = {
        **_placed(raw, [(dataset.name, dataset.description) for dataset in datasets], height, 34),
        **_placed(mart, [(name, "staging, then mart") for name in marts], height, 34),
        **_placed(computed, [(view.name, _features(view)) for view in views], height, 60),
        **_placed(online, [(f"online/{view.name}", "newest row, Redis") for view in views], height, 60),
    }
    hidden = [name for name, view in ((f"online/{view.name}", view) for view in views) if not view.online]
    edges = [(boxes[dataset.name], boxes[view.name]) for view in views for dataset in datasets if dataset in _inputs(view)]
    edges += [(boxes["us_macro"], boxes[name]) for name in marts if "us_macro" in boxes]
    edges += [(boxes[view.mart], boxes[view.name]) for view in views if view.mart]
    edges += [(boxes[view.name], boxes[f"online/{view.name}"]) for view in views if view.online]
    heads = "\n".join(
        f'<text x="{x}" y="{TOP}" font-size="13" font-weight="600" fill="#2d3748">{escape(title)}</text>'
        for title, (x, *_) in COLUMNS.items()
    )
    lines = "\n".join(_edge(start, end) for start, end in edges)
    drawn = "\n".join(box.drawn() for name, box in boxes.items() if name not in hidden)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        'font-family="system-ui, sans-serif" role="img" aria-labelledby="title">\n'
        '<title id="title">The asset graph: raw datasets, views and online rows</title>\n'
        f'<rect width="{WIDTH}" height="{height}" rx="8" fill="#ffffff"/>\n{heads}\n{lines}\n{drawn}\n</svg>\n'
    )


def _inputs(view: FeatureView) -> list[Dataset]:
    return [dataset for stream in view.streams for dataset in stream.inputs]


def _features(view: FeatureView) -> str:
    timeframes = ", ".join(dict.fromkeys(stream.timeframe.value for stream in view.streams))
    return f"{len(view.features)} features: {timeframes}"


def _placed(column: str, items: list[tuple[str, str]], height: int, longest_note: int) -> dict[str, _Box]:
    step = (height - FIRST_BOX) / max(len(items), 1)
    return {
        name: _Box(name, note if len(note) <= longest_note else f"{note[: longest_note - 1]}…", column, FIRST_BOX + step * (place + 0.5))
        for place, (name, note) in enumerate(items)
    }


def _edge(start: _Box, end: _Box) -> str:
    bend = (start.right + end.left) / 2
    return (
        f'<path d="M{start.right} {start.middle:g} C{bend:g} {start.middle:g} {bend:g} {end.middle:g} {end.left} {end.middle:g}" '
        'fill="none" stroke="#a0aec0" stroke-width="1" opacity="0.7"/>'
    )
