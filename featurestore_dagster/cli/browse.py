"""Commands that show: list, info, get, env."""

import contextlib
import shlex
from datetime import datetime
from typing import Annotated, Any

import typer

from featurestore_dagster.cli.operate import connected
from featurestore_dagster.cli.output import AsJson, console, print_json, print_rows
from featurestore_dagster.errors import StoreUnavailableError
from featurestore_dagster.features import CATALOGUE
from featurestore_dagster.settings import Settings


def list_declarations(as_json: bool = AsJson) -> None:
    """Views, services, datasets and sources, as declared.

    Example: `featurestore list`
    """
    views = [
        {
            "view": view.name,
            "keys": ", ".join(view.join_keys),
            "features": len(view.features),
            "streams": ", ".join(stream.name for stream in view.streams),
            "slo": str(view.slo.max_lag),
            "ttl_open_time": str(view.ttl),
        }
        for view in CATALOGUE.views
    ]
    services = [
        {"service": service.name, "features": len(service.references), "description": service.description} for service in CATALOGUE.services
    ]
    datasets = [
        {
            "dataset": dataset.name,
            "calendar": dataset.calendar,
            "timeframe": dataset.timeframe.value,
            "symbols": ", ".join(CATALOGUE.listings(dataset)),
            "sources": ", ".join(source.name for source in CATALOGUE.sources if dataset in source.datasets),
        }
        for dataset in CATALOGUE.datasets
    ]
    if as_json:
        print_json({"views": views, "services": services, "datasets": datasets})
        return
    print_rows("Views", views)
    print_rows("Services", services)
    print_rows("Datasets", datasets)


def info(
    name: Annotated[str | None, typer.Argument(help="A view or service; without it, all settings.")] = None, as_json: bool = AsJson
) -> None:
    """Settings with secrets masked, or one view or service in full.

    Example: `featurestore info momentum_features`
    """
    if name is None:
        from featurestore_dagster.stores.embedded import running_settings

        settings = Settings()
        with contextlib.suppress(StoreUnavailableError):  # embedded servers that do not run have no connections to show
            settings = running_settings(settings)
        rows = [setting._asdict() for setting in settings.describe()]
        print_json(rows) if as_json else print_rows("Settings", rows)
        return
    services = {service.name: service for service in CATALOGUE.services}
    references = services[name].references if name in services else [(CATALOGUE.view(name), f) for f in CATALOGUE.view(name).features]
    rows = [
        {
            "feature": f"{view.name}:{feature.name}",
            "unit": feature.indicator.unit.value,
            "warm_up_bars": feature.warm_up_bars,
            "look_back_bars": feature.look_back_bars,
            "formula": feature.formula,
        }
        for view, feature in references
    ]
    if as_json:
        print_json(rows)
        return
    if name not in services:
        view = CATALOGUE.view(name)
        console.print(
            f"{view.description}.\nKeys {', '.join(view.join_keys)}; SLO {view.slo.max_lag}; TTL {view.ttl} open-market time",
            highlight=False,
        )
    print_rows(name, rows)


def get(
    features: Annotated[list[str], typer.Argument(help="A service, or view:feature references.")],
    symbol: Annotated[str, typer.Option(help="Symbol.")] = "",
    timeframe: Annotated[str, typer.Option(help="Timeframe of views that have one.")] = "1d",
    portfolio: Annotated[str, typer.Option(help="Portfolio of macro views.")] = "GLOBAL",
    as_of: Annotated[str | None, typer.Option(help="Instant with zone: values as known then, from Postgres.")] = None,
    as_json: bool = AsJson,
) -> None:
    """One feature vector, with unit, event time, age and flags. Exit code 1 when nothing at all was found.

    Example: `featurestore get daily_equity_service --symbol AAPL --as-of 2012-08-10T00:00:00Z`
    """
    from featurestore_dagster.serving.client import FeatureStoreClient

    services = {service.name for service in CATALOGUE.services}
    asked: str | list[str] = features[0] if len(features) == 1 and features[0] in services else features
    if len(features) == 1 and ":" not in features[0] and features[0] not in services:
        CATALOGUE.service(features[0])
    entity = {"timeframe": timeframe, "portfolio": portfolio, **({"symbol": symbol} if symbol else {})}
    with connected(Settings()) as settings:
        answer = FeatureStoreClient(settings).get_online_features(asked, [entity], _instant(as_of))
    if as_json:
        print_json(answer.to_dict())
    else:
        replayed = settings.make_clock().replayed
        title = f"{symbol or portfolio} at {answer.as_of.isoformat(timespec='seconds')}" + (
            f" ({replayed})" if replayed and not as_of else ""
        )
        print_vector(title, answer)
    found = any(value.event_timestamp is not None for row in answer.rows for value in row.values)
    raise typer.Exit(0 if found else 1)


def print_vector(title: str, answer: Any) -> None:
    """A table of values per view, under the view's event time, age, flags and tier."""
    for row in answer.rows:
        console.print(f"[bold]{title}[/]", highlight=False)
        by_view: dict[str, list[Any]] = {}
        for value in row.values:
            by_view.setdefault(value.reference.partition(":")[0], []).append(value)
        for view, values in by_view.items():
            newest = values[0]
            where = f"{view} ({newest.tier}): nothing found"
            if newest.event_timestamp is not None:
                age = f"{newest.age_seconds / 3600:.1f} open hours old"
                flags = f", flags {' '.join(newest.flags)}" if newest.flags else ", no flags"
                where = f"{view} ({newest.tier}): event time {newest.event_timestamp.isoformat(timespec='minutes')}, {age}{flags}"
            print_rows(
                where,
                [
                    {"feature": v.reference.partition(":")[2], "value": v.value, "unit": v.unit.value, "status": v.status.value}
                    for v in values
                ],
            )


def env(as_json: bool = AsJson) -> None:
    """Environment for other programs (Feast, dbt, psql), as shell exports. Contains passwords.

    Example: `eval "$(featurestore env)"`
    """
    from featurestore_dagster.stores.embedded import running_settings

    exports = running_settings(Settings()).exports()
    if as_json:
        print_json(exports)
        return
    for name, value in exports.items():
        typer.echo(f"export {name}={shlex.quote(value)}")


def _instant(text: str | None) -> datetime | None:
    if text is None:
        return None
    try:
        instant = datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is no instant; give for example 2018-12-31T22:00:00Z") from None
    if instant.tzinfo is None:
        raise typer.BadParameter(f"{text!r} has no time zone; append Z for UTC")
    return instant
