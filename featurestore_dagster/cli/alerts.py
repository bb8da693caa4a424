"""Commands over alerts: list, silence, unsilence, retry."""

import re
from datetime import timedelta
from typing import Annotated

import typer

from featurestore_dagster.cli.operate import connected
from featurestore_dagster.cli.output import AsJson, console, print_json, print_rows
from featurestore_dagster.errors import RefusedError, UnknownNameError
from featurestore_dagster.features import CATALOGUE
from featurestore_dagster.model.alert import Alert
from featurestore_dagster.model.time import SystemClock
from featurestore_dagster.monitoring.notifications import channels
from featurestore_dagster.projections.relation import relations
from featurestore_dagster.settings import Settings
from featurestore_dagster.stores.postgres import AlertStore

app = typer.Typer(invoke_without_command=True)

UNITS = {"m": "minutes", "h": "hours", "d": "days"}
LONGEST_SILENCE = timedelta(days=90)


@app.callback()
def alerts(context: typer.Context, as_json: bool = AsJson) -> None:
    """What is wrong now, who is told, and what could not be delivered; without a command the same as `list`.

    Example: `featurestore alerts`
    """
    context.default_map = {"list": {"as_json": as_json}}
    if context.invoked_subcommand is None:
        list_alerts(as_json=as_json)


@app.command(name="list")
def list_alerts(
    history: Annotated[bool, typer.Option("--history", help="Resolved alerts too.")] = False,
    limit: Annotated[int, typer.Option(min=1, max=10_000)] = 50,
    as_json: bool = AsJson,
) -> None:
    """Alerts that are not resolved, newest first; silences; messages that were given up.

    Exit code 1 when there is any alert, or when a channel is configured that does not exist.

    Example: `featurestore alerts list --history`
    """
    with connected(Settings()) as settings:
        store = AlertStore(settings.postgres)
        found = store.alerts(resolved=history, limit=limit)
        silences, dead = store.silences(settings.make_clock().now()), store.deliveries("dead", limit)
    if as_json:
        print_json(
            {"alerts": [_fields(alert) for alert in found], "silences": [vars(one) for one in silences], "dead": [vars(d) for d in dead]}
        )
    else:
        print_rows("Alerts", [_line(alert) for alert in found], empty="none")
        for alert in found:
            line = f"  {alert.alert_id}: {alert.problem.subject}; likely cause: {alert.problem.cause}"
            console.print(line, highlight=False, soft_wrap=True, markup=False)
        print_rows(
            "Silences",
            [{"name": one.name, "until": f"{one.ends_at:%Y-%m-%d %H:%MZ}", "reason": one.reason} for one in silences],
            empty="none",
        )
        letters = [{"message": d.message_key, "channel": d.channel, "title": d.title, "error": d.last_error} for d in dead]
        print_rows("Dead letters", letters, empty="none")
        if not settings.alert_urls.get_secret_value():
            console.print("[yellow]nobody is told: FEATURESTORE_ALERT_URLS is empty[/]")
    channels(settings)  # after the list, which whoever is on call needs all the same
    raise typer.Exit(1 if any(alert.resolved_at is None for alert in found) else 0)


@app.command()
def silence(
    name: Annotated[
        str,
        typer.Argument(metavar="NAME", help="A view with all that it publishes; or a stream (view/stream), relation or job."),
    ],
    duration: Annotated[str, typer.Option("--for", metavar="DURATION", help="A number and m, h or d: 30m, 2h, 7d.")],
    reason: Annotated[str, typer.Option(help="Why; others read it.")],
) -> None:
    """Tell nobody of some alerts for a while; what is still wrong afterwards is told then.

    Example: `featurestore alerts silence momentum_features --for 2h --reason "the provider maintains its servers"`
    """
    from featurestore_dagster.orchestration.jobs import job_names

    length = _duration(duration)
    if not reason.strip():
        raise typer.BadParameter("a silence needs a reason, which others read: give --reason TEXT")
    with connected(Settings()) as settings:
        store, now = AlertStore(settings.postgres), settings.make_clock().now()
        known = {named for alert in store.alerts() for named in (alert.problem.group, alert.problem.subject)}
        known |= {view.label for view in CATALOGUE.views} | relations(CATALOGUE).keys() | job_names(CATALOGUE)
        known |= {f"{view.label}/{stream.name}" for view in CATALOGUE.views for stream in view.streams}
        if name not in known:
            raise UnknownNameError("view, stream, relation or job", name, known)
        store.silence(name, now, now + length, reason)
    console.print(f"{name} is silent until {now + length:%Y-%m-%d %H:%MZ}", highlight=False)


@app.command()
def unsilence(name: Annotated[str, typer.Argument(metavar="NAME", help="As for `silence`.")]) -> None:
    """End a silence. Exit code 1 when there is none.

    Example: `featurestore alerts unsilence momentum_features`
    """
    with connected(Settings()) as settings:
        ended = AlertStore(settings.postgres).unsilence(name, settings.make_clock().now())
    if not ended:
        raise RefusedError(f"{name} is not silenced; `featurestore alerts` shows what is")
    console.print(f"{name} is silent no more", highlight=False)


@app.command()
def retry() -> None:
    """Put messages that were given up into the outbox again; the sensor sends them at its next tick.

    Example: `featurestore alerts retry`
    """
    from featurestore_dagster.monitoring.alerting import GIVE_UP_AFTER

    with connected(Settings()) as settings:
        count = AlertStore(settings.postgres).retry(SystemClock().now(), GIVE_UP_AFTER)
    console.print(f"{count} messages are to be sent again", highlight=False)


def _fields(alert: Alert) -> dict[str, object]:
    return {**vars(alert), "problem": vars(alert.problem)}


def _line(alert: Alert) -> dict[str, object]:
    return {
        "id": alert.alert_id,
        "state": alert.state.value,
        "kind": alert.problem.kind.value,
        "since": f"{alert.problem.since:%Y-%m-%d %H:%MZ}",
        "told": f"{alert.notified_at:%Y-%m-%d %H:%MZ}" if alert.notified_at else None,
    }


def _duration(text: str) -> timedelta:
    found = re.fullmatch(r"([1-9]\d{0,4})([mhd])", text)
    length = timedelta(**{UNITS[found[2]]: int(found[1])}) if found else None
    if length is None or length > LONGEST_SILENCE:
        raise typer.BadParameter(f"{text!r} is no duration of a silence; give 30m, 2h or 7d, at most {LONGEST_SILENCE.days} days")
    return length
