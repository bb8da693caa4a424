"""`/status`: the overview as one HTML page, without script, for those without Grafana. What it says comes from `serving.overview`."""

import math
from collections.abc import Sequence
from datetime import datetime
from html import escape

from featurestore_dagster.serving.freshness import FreshnessState
from featurestore_dagster.serving.overview import Overview, StreamOverview, due_text, duration_text

CONTENT_SECURITY_POLICY = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'"

STYLE = """
:root { color-scheme: light dark; --page: #ffffff; --text: #1c2024; --quiet: #5a6169; --line: #d9dde1; --band: #f4f6f8; --link: #1652c4;
  --good: #14683a; --good-band: #e3f4e9; --calm: #37517a; --calm-band: #e8eef8; --warn: #8a4b00; --warn-band: #fdefd9;
  --bad: #a1121c; --bad-band: #fde5e6; }
@media (prefers-color-scheme: dark) { :root { --page: #14171a; --text: #e6e8ea; --quiet: #a2a9b0; --line: #343a40; --band: #1d2125;
  --link: #8ab4ff; --good: #7fdca4; --good-band: #12301f; --calm: #a9c4f5; --calm-band: #1b2638; --warn: #ffc276; --warn-band: #3a2708;
  --bad: #ff9ba1; --bad-band: #40161a; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--text); font: 1rem/1.5 system-ui, sans-serif; }
a { color: var(--link); }
:focus-visible { outline: 3px solid var(--link); outline-offset: 2px; }
.skip { position: absolute; left: -100vw; }
.skip:focus { left: .5rem; top: .5rem; background: var(--page); padding: .5rem; }
header, main, footer { max-width: 90rem; margin: 0 auto; padding: 0 1.5rem; }
header { padding-top: 1.5rem; }
h1 { font-size: 1.5rem; margin: 0; }
h2 { font-size: 1.15rem; margin: 2.25rem 0 .5rem; }
p { margin: .25rem 0 .75rem; }
.quiet { color: var(--quiet); }
.verdict { font-size: 1.1rem; font-weight: 600; padding: .6rem 1rem; border-left: .35rem solid; border-radius: .25rem; margin: 1rem 0 0; }
.counts { display: flex; flex-wrap: wrap; gap: .5rem 1.5rem; margin: 1rem 0 0; padding: 0; list-style: none; }
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: .4rem; }
table { border-collapse: collapse; width: 100%; font-size: .92rem; }
caption { text-align: left; padding: .5rem .75rem; color: var(--quiet); }
th, td { text-align: left; vertical-align: middle; padding: .45rem .75rem; border-top: 1px solid var(--line); }
thead th { background: var(--band); white-space: nowrap; }
tbody th { font-weight: 600; }
tbody th span { display: block; font-weight: 400; color: var(--quiet); font-size: .85rem; }
time, .number { font-variant-numeric: tabular-nums; white-space: nowrap; }
td time { display: block; }
.badge { display: inline-block; white-space: nowrap; padding: .1rem .55rem; border-radius: 1rem; font-weight: 600; font-size: .85rem; }
.good { color: var(--good); background: var(--good-band); border-color: var(--good); }
.calm { color: var(--calm); background: var(--calm-band); border-color: var(--calm); }
.warn { color: var(--warn); background: var(--warn-band); border-color: var(--warn); }
.bad { color: var(--bad); background: var(--bad-band); border-color: var(--bad); }
svg { display: block; color: var(--link); }
ul.plain { margin: 0; padding: 0; list-style: none; }
footer { margin-top: 2.5rem; padding-bottom: 2rem; color: var(--quiet); }
"""

LOOKS = {
    FreshnessState.FRESH: ("good", "✓", "nothing is overdue, and the market trades"),
    FreshnessState.CLOSED: ("calm", "◷", "nothing is overdue, and the market is closed"),
    FreshnessState.LATE: ("warn", "!", "the next value is overdue"),
    FreshnessState.STALE: ("bad", "✕", "overdue for another SLO of open market, or older than is served"),
    FreshnessState.NEVER: ("bad", "∅", "there never was a value"),
}
"""Class, mark and meaning of a state: colour never says it alone."""

CHART_WIDTH, CHART_HEIGHT, CHART_MARGIN = 140, 30, 3
EXAMPLES = 3


def status_page(found: Overview) -> str:
    """The whole document."""
    replayed = f' <span class="badge calm">{escape(found.replayed)}</span>' if found.replayed else ""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>Status of the feature store</title>\n'
        f"<style>{STYLE}</style>\n</head>\n<body>\n"
        '<a class="skip" href="#content">Skip to the content</a>\n'
        f'<header><h1>Feature store</h1><p class="quiet">At {_time(found.at)}.{replayed} Reload the page for a newer one.</p></header>\n'
        f'<main id="content" tabindex="-1">\n{_verdict(found)}{_views(found)}{_behind(found)}{_blocked(found)}</main>\n'
        '<footer><nav aria-label="For programs">For programs: <a href="/v1/freshness">/v1/freshness</a>, <a href="/metrics">/metrics</a>, '
        '<a href="/health">/health</a>, <a href="/openapi.json">/openapi.json</a></nav></footer>\n</body>\n</html>\n'
    )


def _verdict(found: Overview) -> str:
    problems = [
        text
        for count, text in (
            (found.overdue, f"{_many(found.overdue, 'stream')} behind {'its' if found.overdue == 1 else 'their'} SLO"),
            (len(found.blocked), f"{_many(len(found.blocked), 'partition')} blocked"),
        )
        if count
    ]
    look, text = ("bad", ", ".join(problems)) if problems else ("good", "Every stream is within its SLO; no partition is blocked")
    counts = [(state, sum(stream.state.freshness.state is state for stream in found.streams)) for state in FreshnessState]
    items = "".join(f"<li>{_badge(state)} {count}</li>" for state, count in counts if count)
    refused = sum(found.rows_open.values())
    items += f"<li>{refused:,} refused rows are open</li>" if refused else ""
    return f'<p class="verdict {look}">{escape(text)}</p>\n<ul class="counts" aria-label="Streams by state">{items}</ul>\n'


def _views(found: Overview) -> str:
    rows = "".join(_stream(stream, found.at) for stream in found.streams)
    return _table(
        "Views",
        "Each stream that a source is switched on for, the worst first. Times are UTC.",
        ("State", "View", "Newest value", "Next value due", "Lag", "Event to publication"),
        rows,
    )


def _stream(stream: StreamOverview, at: datetime) -> str:
    state = stream.state
    freshness = state.freshness
    newest = "never"
    if freshness.watermark is not None:
        newest = f'{_time(freshness.watermark)}<span class="quiet">{duration_text((at - freshness.watermark).total_seconds())} ago</span>'
    lag = "unknown" if freshness.lag is None else duration_text(freshness.lag.total_seconds())
    return (
        f'<tr><td>{_badge(freshness.state)}</td><th scope="row">{escape(state.view)}<span>{escape(state.stream)}</span></th>'
        f'<td>{newest}</td><td>{_time(freshness.due_at)}<span class="quiet">{due_text(state, at)}</span></td>'
        f'<td class="number">{lag} <span class="quiet">of {duration_text(stream.max_lag.total_seconds())}</span></td>'
        f"<td>{sparkline(stream.delays_seconds, f'{state.view}, {state.stream}')}</td></tr>\n"
    )


def sparkline(seconds: Sequence[float], subject: str) -> str:
    """Delays over time as an inline picture with its figures as text; logarithmic, since an outage is a thousand times an ordinary day."""
    if not seconds:
        return '<span class="quiet">no publication</span>'
    values = [math.log10(1 + max(value, 0.0)) for value in seconds]
    low, high = min(values), max(values)
    step = (CHART_WIDTH - 2 * CHART_MARGIN) / max(len(values) - 1, 1)
    inner = CHART_HEIGHT - 2 * CHART_MARGIN
    points = [
        (CHART_MARGIN + number * step, CHART_HEIGHT - CHART_MARGIN - inner * ((value - low) / (high - low) if high > low else 0.5))
        for number, value in enumerate(values)
    ]
    last, worst = duration_text(seconds[-1]), duration_text(max(seconds))
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    label = f"{subject}: from event to publication, the last {len(seconds)} times; newest {last}, longest {worst}"
    return (
        f'<svg role="img" aria-label="{escape(label)}" width="{CHART_WIDTH}" height="{CHART_HEIGHT}"'
        f' viewBox="0 0 {CHART_WIDTH} {CHART_HEIGHT}"><polyline fill="none" stroke="currentColor" stroke-width="1.5" points="{line}"/>'
        f'<circle cx="{points[-1][0]:.1f}" cy="{points[-1][1]:.1f}" r="2.5" fill="currentColor"/></svg>'
        f'<span class="quiet number">{last}, longest {worst}</span>'
    )


def _behind(found: Overview) -> str:
    behind = [stream.state for stream in found.streams if stream.state.worst]
    if not behind:
        return ""
    rows = "".join(
        f'<tr><th scope="row">{escape(state.view)}<span>{escape(state.stream)}</span></th><td><ul class="plain">'
        + "".join(f"<li>{escape(line)}</li>" for line in state.worst)
        + "</ul></td></tr>\n"
        for state in behind
    )
    return _table("Furthest behind", "At most ten entities of each stream that has any behind.", ("View", "Entities, worst first"), rows)


def _blocked(found: Overview) -> str:
    if not found.blocked:
        return '<section><h2 id="blocked">Blocked partitions</h2><p>None.</p></section>\n'
    rows = "".join(
        f'<tr><th scope="row">{escape(relation)}</th><td class="number">{escape(partition)}</td><td><ul class="plain">'
        + "".join(f"<li>{escape(_check(check))}</li>" for check in checks)
        + "</ul></td></tr>\n"
        for (relation, partition), checks in found.blocked.items()
    )
    return _table(
        "Blocked partitions",
        "The audit refused them; what was published before goes on being served.",
        ("Relation", "Partition", "Failed checks"),
        rows,
    )


def _check(check: "dict[str, object] | object") -> str:
    if not isinstance(check, dict):
        return str(check)
    examples = check.get("examples") or []
    shown = f": {', '.join(map(str, examples[:EXAMPLES]))}" if isinstance(examples, list) and examples else ""
    return f"{check.get('check')} ({check.get('rows')} rows){shown}"


def _table(title: str, caption: str, columns: Sequence[str], rows: str) -> str:
    anchor = title.lower().replace(" ", "-")
    head = "".join(f'<th scope="col">{column}</th>' for column in columns)
    return (
        f'<section><h2 id="{anchor}">{title}</h2><div class="scroll" role="region" aria-labelledby="{anchor}"'
        f' tabindex="0"><table><caption>{caption}</caption><thead><tr>{head}</tr></thead><tbody>\n{rows}</tbody></table></div></section>\n'
    )


def _badge(state: FreshnessState) -> str:
    look, mark, meaning = LOOKS[state]
    return f'<span class="badge {look}" title="{meaning}"><span aria-hidden="true">{mark}</span> {state}</span>'


def _time(instant: datetime) -> str:
    return f'<time datetime="{instant.isoformat()}">{instant:%Y-%m-%d %H:%M}</time>'


def _many(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'} {'is' if count == 1 else 'are'}"
