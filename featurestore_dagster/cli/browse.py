"""Commands that show: list, info, get, env."""

import contextlib
import shlex
from datetime import datetime
from itertools import groupby
from typing import Annotated, Any

import typer

from featurestore_dagster.cli.operate import connected
from featurestore_dagster.cli.output import AsJson, console, print_json, print_rows
from featurestore_dagster.errors import StoreUnavailableError, UnknownNameError
from featurestore_dagster.features import CATALOGUE
from featurestore_dagster.model.entity import TIMEFRAMES, parse_entity_id
from featurestore_dagster.model.feature_view import FeatureView
from featurestore_dagster.model.time import Timeframe, duration
from featurestore_dagster.projections.data_dictionary import view_facts
from featurestore_dagster.settings import Settings


def list_declarations(as_json: bool = AsJson) -> None:
    """Views, services, datasets and sources, as declared.

    Example: `featurestore list`
    """
    views = [
        {
            "view": view.label,
            "version": view.version,
            "aliases": ", ".join(view.aliases),
            "keys": ", ".join(view.join_keys),
            "features": len(view.features),
            "streams": ", ".join(stream.name for stream in view.streams),
            "slo": duration(view.slo.max_lag),
            "ttl_open_time": duration(view.ttl),
            "online": "yes" if view.online else "no",
        }
        for view in CATALOGUE.views
    ]
    services = [
        {
            "service": service.name,
            "version": service.version,
            "features": len(service.references),
            "online": "yes" if service.is_online else "no",
            "description": service.description,
        }
        for service in CATALOGUE.services
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
    # The rest is in `info`, and in the JSON: eighty columns hold no more.
    shown = ("view", "keys", "features", "slo", "ttl_open_time", "online")
    print_rows("Views", [{name: view[name] for name in shown} for view in views])
    print_rows("Services", [{name: service[name] for name in ("service", "features", "online", "description")} for service in services])
    print_rows("Datasets", datasets)


def info(
    name: Annotated[str | None, typer.Argument(help="A view, service or view:feature; without it, all settings.")] = None,
    as_json: bool = AsJson,
) -> None:
    """Settings with secrets masked, or one view, service or feature in full.

    Example: `featurestore info momentum_features`
    """
    if name is None:
        from featurestore_dagster.sources import provider_settings
        from featurestore_dagster.stores.embedded import running_settings

        settings = Settings()
        with contextlib.suppress(StoreUnavailableError):  # embedded servers that do not run have no connections to show
            settings = running_settings(settings)
        rows = [setting._asdict() for setting in (*settings.describe(), *provider_settings.describe())]
        print_json(rows) if as_json else print_rows("Settings", rows)
        return
    services = {service.name: service for service in CATALOGUE.services}
    view = None
    if name in services:
        references = services[name].references
    elif ":" in name:
        references = CATALOGUE.references([name])
    else:
        view = _view(name)
        references = tuple((view, feature) for feature in view.features)
    rows = [
        {
            "feature": f"{declared.label}:{feature.name}",
            "unit": feature.indicator.unit.value,
            "grain": feature.indicator.grain.value,
            "warm_up_bars": feature.warm_up_bars,
            "look_back_bars": feature.look_back_bars,
            "formula": feature.formula,
        }
        for declared, feature in references
    ]
    if as_json:
        print_json(rows)
        return
    if view is not None:
        console.print(
            "\n".join([f"{view.description}.", *(f"  {name}: {text}" for name, text in view_facts(view))]),
            highlight=False,
        )
        rows = [row | {"feature": feature.name} for row, (_, feature) in zip(rows, references, strict=True)]
    print_rows(name, rows)


def _view(name: str) -> FeatureView:
    """The view called so, or an error that knows the services too."""
    try:
        return CATALOGUE.view(name)
    except UnknownNameError:
        called = [called for view in CATALOGUE.views for called in (view.label, *view.aliases)]
        raise UnknownNameError("view or service", name, [*called, *(service.name for service in CATALOGUE.services)]) from None


def get(
    features: Annotated[list[str], typer.Argument(help="A service, or view:feature references; view@1:feature is an older version.")],
    symbol: Annotated[str, typer.Option(help="Symbol; BTCUSDT_1h stands for symbol BTCUSDT, timeframe 1h.")] = "",
    timeframe: Annotated[str | None, typer.Option(help="Timeframe of views that have one; 1d when not given.")] = None,
    portfolio: Annotated[str, typer.Option(help="Portfolio of macro views.")] = "GLOBAL",
    as_of: Annotated[str | None, typer.Option(help="Instant with zone: values as known then, from Postgres.")] = None,
    deadline_seconds: Annotated[
        float, typer.Option(help="Within this time Redis, Postgres and a computation from raw data are asked.")
    ] = 30,
    as_json: bool = AsJson,
) -> None:
    """One feature vector in order, with unit, event time, age and flags. Exit code 1 when nothing at all was found.

    Example: `featurestore get daily_equity_service --symbol AAPL --as-of 2012-08-10T00:00:00Z`
    """
    from featurestore_dagster.serving.client import FeatureStoreClient
    from featurestore_dagster.serving.policy import ReadPolicy

    asked = _asked(features)
    symbol, timeframe = _entity(symbol, timeframe)
    entity = {"timeframe": timeframe, "portfolio": portfolio, **({"symbol": symbol} if symbol else {})}
    policy = ReadPolicy(deadline_seconds=deadline_seconds)
    with connected(Settings()) as settings, FeatureStoreClient(settings) as client:
        answer = client.get_online_features(asked, [entity], _instant(as_of), policy)
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


def _asked(features: list[str]) -> str | list[str]:
    """The service, or the references; unknown names are refused before anything is connected."""
    if len(features) > 1 or ":" in features[0]:
        CATALOGUE.references(features)
        return features
    services = {service.name for service in CATALOGUE.services}
    if features[0] not in services:
        references = [
            f"{view.label}:{name}" for view in CATALOGUE.views for name in view.feature_names if features[0] in (name, view.label)
        ]
        raise UnknownNameError("service or view:feature", features[0], references or services)
    return features[0]


def print_vector(title: str, answer: Any) -> None:
    """The values in order, numbered; neighbours of one view under its event time, age, flags and tier."""
    for row in answer.rows:
        console.print(f"[bold]{title}[/]", highlight=False)
        numbered = [
            (value.reference.partition(":")[0], number, value, value.reference.partition(":")[2])
            for number, value in enumerate(row.values, start=1)
        ]
        for view, group in groupby(numbered, key=lambda item: item[0]):
            values = list(group)
            newest = values[0][2]
            where = f"{view} ({newest.tier}): nothing found"
            if newest.event_timestamp is not None:
                age = f"{newest.age_seconds / 3600:.1f} open hours old"
                flags = f", flags {' '.join(newest.flags)}" if newest.flags else ", no flags"
                where = f"{view} ({newest.tier}): event time {newest.event_timestamp.isoformat(timespec='minutes')}, {age}{flags}"
            print_rows(
                where,
                [
                    {
                        "#": number,
                        "feature": name,
                        "value": "NULL" if value.value is None else value.value,
                        "unit": value.unit.value,
                        "status": value.status.value,
                    }
                    for _, number, value, name in values
                ],
            )


def _entity(symbol: str, timeframe: str | None) -> tuple[str, str]:
    """Symbol and timeframe of the options; the shorthand SYMBOL_TIMEFRAME is taken apart when it ends in a timeframe."""
    symbol, shorthand = parse_entity_id(symbol)
    if shorthand is not None:
        if timeframe not in (None, shorthand):
            raise typer.BadParameter(f"--symbol {symbol}_{shorthand} says timeframe {shorthand}, --timeframe says {timeframe}")
        return symbol, shorthand
    if timeframe is not None and timeframe not in TIMEFRAMES:
        raise UnknownNameError("timeframe", timeframe, TIMEFRAMES)
    return symbol, timeframe or Timeframe.ONE_DAY.value


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
