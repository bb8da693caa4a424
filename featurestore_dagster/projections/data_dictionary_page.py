"""Declarations -> `docs/data_dictionary.html`: the data dictionary as one page that needs nothing but itself.

What it says comes from `data_dictionary`; only the form belongs here.
"""

from collections.abc import Iterable, Sequence
from html import escape
from urllib.parse import quote

from featurestore_dagster.model.catalogue import Catalogue
from featurestore_dagster.model.feature_service import FeatureService
from featurestore_dagster.model.feature_view import FeatureView
from featurestore_dagster.projections.data_dictionary import (
    CHECK_COLUMNS,
    DATASET_COLUMNS,
    FEATURE_COLUMNS,
    FLAG_COLUMNS,
    STREAM_COLUMNS,
    Row,
    check_rows,
    dataset_rows,
    feature_row,
    flag_rows,
    references,
    service_facts,
    stream_rows,
    view_facts,
)

STYLE = """
:root { color-scheme: light dark; --page: #ffffff; --text: #1c2024; --quiet: #5a6169; --line: #d9dde1; --band: #f4f6f8; --link: #1652c4;
  --mark: #fff3c4; }
@media (prefers-color-scheme: dark) { :root { --page: #14171a; --text: #e6e8ea; --quiet: #a2a9b0; --line: #343a40; --band: #1d2125;
  --link: #8ab4ff; --mark: #4a3f12; } }
* { box-sizing: border-box; }
html { scroll-padding-top: 5.5rem; }
body { margin: 0; background: var(--page); color: var(--text); font: 1rem/1.5 system-ui, sans-serif; }
a { color: var(--link); }
code, .name { font-family: ui-monospace, monospace; font-size: .92em; overflow-wrap: anywhere; }
:focus-visible { outline: 3px solid var(--link); outline-offset: 2px; }
.skip { position: absolute; left: -100vw; }
.skip:focus { left: .5rem; top: .5rem; z-index: 2; background: var(--page); padding: .5rem; }
header { position: sticky; top: 0; z-index: 1; display: flex; flex-wrap: wrap; gap: .25rem 1rem; align-items: center; padding: .6rem 1rem;
  background: var(--page); border-bottom: 1px solid var(--line); }
header h1 { font-size: 1.15rem; margin: 0; }
header form { flex: 1 1 20rem; display: flex; flex-wrap: wrap; gap: .25rem .75rem; align-items: center; }
header label { color: var(--quiet); }
header input { font: inherit; flex: 1 1 14rem; max-width: 26rem; min-width: 0; padding: .35rem .6rem; color: inherit;
  background: var(--band); border: 1px solid var(--quiet); border-radius: .35rem; }
header output { color: var(--quiet); }
.columns { display: grid; grid-template-columns: 17rem minmax(0, 1fr); }
nav { position: sticky; top: 3.6rem; align-self: start; max-height: calc(100vh - 3.6rem); overflow-y: auto; padding: 1rem;
  border-right: 1px solid var(--line); font-size: .9rem; }
nav h2 { font-size: .9rem; margin: 1rem 0 .25rem; padding: 0; border: 0; color: var(--quiet); }
nav > h2 { margin-top: 0; }
nav ul { list-style: none; margin: 0; padding: 0; }
nav a { display: block; padding: .15rem 0; overflow-wrap: anywhere; text-decoration: none; }
nav a:hover { text-decoration: underline; }
main { padding: 1rem 1.5rem 4rem; max-width: 100rem; }
section { margin-bottom: 2.5rem; }
h2 { border-bottom: 2px solid var(--line); padding-bottom: .25rem; }
h3 { font-family: ui-monospace, monospace; margin-bottom: .25rem; overflow-wrap: anywhere; }
dl { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: .1rem 1rem; margin: .75rem 0; }
dt { color: var(--quiet); }
dd { margin: 0; }
table { border-collapse: collapse; width: 100%; margin: .75rem 0; font-size: .9rem; }
th, td { text-align: left; vertical-align: top; padding: .35rem .6rem; border-bottom: 1px solid var(--line); }
thead th { background: var(--band); font-weight: 600; }
tbody th { font-weight: 600; }
tbody .name { overflow-wrap: normal; }
tr:target, li:target { background: var(--mark); }
.number, thead .number { text-align: right; font-variant-numeric: tabular-nums; }
.short { white-space: nowrap; }
ol.features { columns: 22rem; padding-left: 2.2rem; }
[hidden] { display: none !important; }
@media (max-width: 60rem) {
  html { scroll-padding-top: 1rem; }
  header { position: static; }
  .columns { display: block; }
  nav { position: static; max-height: none; border-right: 0; border-bottom: 1px solid var(--line); }
  nav ul { columns: 12rem; }
  main { padding: 1rem; }
  table, tbody, tr, th, td { display: block; }
  thead { position: absolute; left: -100vw; }
  tr { border: 1px solid var(--line); border-radius: .35rem; margin-bottom: .6rem; padding: .35rem .6rem; }
  th, td { border: 0; padding: .1rem 0; text-align: left; white-space: normal; overflow-wrap: anywhere; }
  .number { text-align: left; }
  td { display: grid; grid-template-columns: 7.5rem minmax(0, 1fr); gap: .5rem; }
  td::before { content: attr(data-label); color: var(--quiet); }
  tbody .name { overflow-wrap: anywhere; }
  dl { grid-template-columns: 7.5rem minmax(0, 1fr); gap: .1rem .5rem; }
  h3 { font-size: 1.05rem; }
}
@media print { header, nav { display: none; } .columns { display: block; } }
"""

SCRIPT = """
const box = document.getElementById('search'), found = document.getElementById('found');
const views = [...document.querySelectorAll('section[data-view]')].map(section => ({
  section, text: section.dataset.view.toLowerCase(),
  rows: [...section.querySelectorAll('tr[data-feature]')].map(row => ({row, text: row.textContent.toLowerCase()})),
}));
const links = new Map([...document.querySelectorAll('nav a[data-view]')].map(link => [link.dataset.view, link.parentElement]));
const others = [...document.querySelectorAll('[data-always]')];
function search() {
  const words = box.value.toLowerCase().split(/[\\s:]+/).filter(Boolean);
  let count = 0;
  for (const view of views) {
    let shown = 0;
    for (const item of view.rows) {
      const matches = words.every(word => item.text.includes(word) || view.text.includes(word));
      item.row.hidden = !matches;
      shown += matches;
    }
    view.section.hidden = !shown;
    links.get(view.section.dataset.view).hidden = !shown;
    count += shown;
  }
  for (const part of others) part.hidden = words.length > 0;
  found.textContent = words.length ? `${count} feature${count === 1 ? '' : 's'}` : '';
}
box.addEventListener('input', search);
window.addEventListener('hashchange', () => {
  const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (target && target.closest('[hidden]')) { box.value = ''; search(); target.scrollIntoView(); }
});
document.querySelector('form').addEventListener('submit', event => event.preventDefault());
"""

NUMBERS = {"warm-up bars", "look-back bars", "bit"}
UNBROKEN = {"SLO", "TTL", "range", "grain", "timeframe", "calendar", "severity", "market"}


def data_dictionary_page(catalogue: Catalogue) -> str:
    """The page: a table of contents, a search box over all features, an anchor `view:feature` for each, light and dark."""
    views = "".join(map(_view, catalogue.views))
    services = "".join(map(_service, catalogue.services))
    rest = (
        _part("datasets", "Datasets", _table("Datasets", DATASET_COLUMNS, dataset_rows(catalogue)))
        + _part("flags", "Quality flags", _table("Quality flags", FLAG_COLUMNS, flag_rows()))
        + _part("checks", "Checks before publication", _table("Checks before publication", CHECK_COLUMNS, check_rows()))
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>Data dictionary</title>\n'
        f"<style>{STYLE}</style>\n</head>\n<body>\n"
        '<a class="skip" href="#content">Skip to the content</a>\n'
        '<header><h1>Data dictionary</h1><form role="search"><label for="search">Search features</label>\n'
        '<input id="search" type="search" autocomplete="off" placeholder="name, view, unit or formula">'
        '<output id="found" for="search" aria-live="polite"></output></form></header>\n'
        f'<div class="columns">\n{_contents(catalogue)}\n<main id="content" tabindex="-1">\n'
        "<p data-always>Generated by <code>featurestore generate</code> from the declarations.</p>\n"
        f'<h2 id="views">Views</h2>\n{views}<div data-always>\n<h2 id="services">Services</h2>\n{services}</div>\n{rest}'
        f"</main>\n</div>\n<script>{SCRIPT}</script>\n</body>\n</html>\n"
    )


def _contents(catalogue: Catalogue) -> str:
    views = "".join(f'<li><a data-view="{escape(v.label)}" href="#{_anchor(v.label)}">{escape(v.label)}</a></li>' for v in catalogue.views)
    services = "".join(f'<li><a href="#service-{_anchor(s.name)}">{escape(s.name)}</a></li>' for s in catalogue.services)
    rest = "".join(
        f'<li><a href="#{anchor}">{title}</a></li>'
        for anchor, title in (("datasets", "Datasets"), ("flags", "Quality flags"), ("checks", "Checks before publication"))
    )
    return (
        f'<nav aria-label="Contents"><h2>Views</h2><ul>{views}</ul><div data-always><h2>Services</h2><ul>{services}</ul>'
        f"<h2>Reference</h2><ul>{rest}</ul></div></nav>"
    )


def _view(view: FeatureView) -> str:
    facts = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in view_facts(view))
    features = [feature_row(feature) for feature in view.features]
    return (
        f'<section id="{escape(view.label)}" data-view="{escape(view.label)}" aria-labelledby="title-{escape(view.label)}">'
        f'<h3 id="title-{escape(view.label)}">{escape(view.label)}</h3><p>{escape(view.description)}.</p><dl data-always>{facts}</dl>'
        f"<div data-always>{_table(f'Streams of {view.label}', STREAM_COLUMNS, stream_rows(view))}</div>"
        f"{_table(f'Features of {view.label}', FEATURE_COLUMNS, features, anchors=view.label)}</section>\n"
    )


def _service(service: FeatureService) -> str:
    items = "".join(f'<li><a class="name" href="#{_anchor(reference)}">{escape(reference)}</a></li>' for reference in references(service))
    return (
        f'<section id="service-{escape(service.name)}"><h3>{escape(service.name)}</h3><p>{escape(service.description)}. '
        f'{escape(service_facts(service))}</p><ol class="features">{items}</ol></section>\n'
    )


def _part(anchor: str, title: str, content: str) -> str:
    return f'<section id="{anchor}" data-always><h2>{title}</h2>{content}</section>\n'


def _table(caption: str, columns: Sequence[str], rows: Iterable[Row], anchors: str = "") -> str:
    """A table that keeps its roles when a narrow screen shows each row as a block; with `anchors`, each row is a feature of that view."""
    head = "".join(f'<th role="columnheader" scope="col"{_shape(column)}>{escape(column)}</th>' for column in columns)
    body = []
    for row in rows:
        reference = f"{anchors}:{row[0]}"
        attributes = f' id="{escape(reference)}" data-feature' if anchors else ""
        name = escape(row[0]).replace("__", "__<wbr>")
        name = f'<a href="#{_anchor(reference)}">{name}</a>' if anchors else name
        cells = "".join(
            f'<td role="cell" data-label="{escape(column)}"{_shape(column)}>{escape(cell)}</td>'
            for column, cell in zip(columns[1:], row[1:], strict=True)
        )
        body.append(f'<tr role="row"{attributes}><th role="rowheader" scope="row" class="name">{name}</th>{cells}</tr>\n')
    return (
        f'<table role="table" aria-label="{escape(caption)}"><thead role="rowgroup"><tr role="row">{head}</tr></thead>'
        f'<tbody role="rowgroup">\n{"".join(body)}</tbody></table>'
    )


def _shape(column: str) -> str:
    return ' class="number"' if column in NUMBERS else ' class="short"' if column in UNBROKEN else ""


def _anchor(text: str) -> str:
    return quote(text, safe=":@")
