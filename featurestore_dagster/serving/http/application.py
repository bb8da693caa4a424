"""The routes of one worker process, and their OpenAPI document.

What the fields of a route mean belongs to `feast_protocol`, `online` and `history`.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict
from datetime import datetime
from functools import partial
from importlib.metadata import version
from typing import Annotated, Any

import orjson
import polars as pl
from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.concurrency import iterate_in_threadpool
from starlette.exceptions import HTTPException
from starlette.responses import StreamingResponse

from featurestore_dagster.errors import FeatureStoreError
from featurestore_dagster.model.feature_view import FeatureView
from featurestore_dagster.serving.coverage import coverage
from featurestore_dagster.serving.http import feast_protocol, history, metrics, online, schemas, status_page, uploads
from featurestore_dagster.serving.http.answers import JSON, Answer, HttpError, failure
from featurestore_dagster.serving.http.bodies import header, instant, read_body
from featurestore_dagster.serving.http.gate import OPEN, PAGE, Gate, HotRoute
from featurestore_dagster.serving.http.service import Service

MONTH = r"^(19|20)\d\d-(0[1-9]|1[0-2])$"
PLAIN_TEXT = "text/plain; version=0.0.4; charset=utf-8"


def create_application(service: Service) -> Gate:
    """The ASGI application of a worker."""
    hot = {"/get-online-features": _feast_route(service), "/v1/online-features": _online_route(service)}
    return Gate(service, hot, _framework(service))


def _feast_route(service: Service) -> HotRoute:
    async def handle(body: bytes) -> bytes:
        request = feast_protocol.parse(body, service.settings)
        answer = await service.client.get_online_features(request.features, request.entities, policy=feast_protocol.POLICY)
        metrics.read(answer)
        return feast_protocol.render(request, answer)

    return HotRoute(handle, partial(_refused, feast_protocol.refusal))


def _online_route(service: Service) -> HotRoute:
    async def handle(body: bytes) -> bytes:
        asked = online.parse(body, service.settings)
        answer = await service.client.get_online_features(
            asked.features, asked.entities, asked.as_of, asked.policy, entity_ids=asked.entity_ids
        )
        metrics.read(answer)
        return online.render(answer)

    return HotRoute(handle, partial(_refused, failure))


def _refused(refuse: Callable[[Exception], Answer], error: Exception) -> Answer:
    metrics.refused(error)
    return refuse(error)


def _framework(service: Service) -> FastAPI:
    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with service.client:
            yield

    # No documentation page: FastAPI's loads scripts from the internet.
    application = FastAPI(
        title="featurestore", version=version("featurestore-dagster"), lifespan=lifespan,
        docs_url=None, redoc_url=None, redirect_slashes=False,
        description="Online vectors, historical frames, freshness and coverage. /get-online-features is Feast's protocol.",
    )  # fmt: skip
    for kind in (FeatureStoreError, HttpError, Exception):
        application.add_exception_handler(kind, _failed)
    application.add_exception_handler(RequestValidationError, _malformed)
    application.add_exception_handler(HTTPException, _no_route)
    _add_reads(application, service)
    _add_descriptions(application, service)
    _add_health(application, service)
    _declare_key(application, is_needed=bool(service.settings.serve_api_key.get_secret_value()))
    return application


def _declare_key(application: FastAPI, *, is_needed: bool) -> None:
    """Say in the OpenAPI document how the gate takes the key; `{}` stands for a request without."""
    schemes = {
        "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
        "bearer": {"type": "http", "scheme": "bearer"},
        "basic": {"type": "http", "scheme": "basic"},
    }
    document = application.openapi()  # kept by FastAPI, which answers with it
    document["components"]["securitySchemes"] = schemes
    document["security"] = [*({name: []} for name in schemes), *([] if is_needed else [{}])]
    for path in OPEN:
        document["paths"][path]["get"]["security"] = []
        del document["paths"][path]["get"]["responses"]["401"]


def _add_reads(application: FastAPI, service: Service) -> None:
    client, settings = service.client, service.settings

    async def read_request_body(request: Request, maximum_bytes: int) -> bytes:
        return await read_body(request.scope["headers"], request.receive, maximum_bytes)

    async def answered_by_the_gate() -> Response:
        raise NotImplementedError("declared for the OpenAPI document: the gate answers these routes before FastAPI sees them")

    @application.post(
        "/v1/historical-features",
        **_history_documented(),
        response_class=StreamingResponse,
        summary="Features as they were known at each row's instant",
        description="Entity rows as JSON; or as Arrow stream or Parquet, then features, service, as_of and details are in the query.",
    )
    async def historical_features(request: Request) -> Response:
        headers = request.scope["headers"]
        media_type = history.answer_type(header(headers, b"accept"))
        body = await read_request_body(request, settings.serve_maximum_history_body_bytes)
        query = {name: request.query_params.getlist(name) for name in request.query_params}

        async def joined() -> pl.DataFrame:
            asked = await asyncio.to_thread(history.parse, body, header(headers, b"content-type"), query, settings)
            history.refuse_too_many_values(asked, client.catalogue, settings.serve_maximum_history_values)
            options: dict[str, Any] = {"details": asked.details} | ({"as_of": asked.as_of} if asked.as_of else {})
            return await client.get_historical_features(asked.entities, asked.features, **options)

        frame = await service.in_background(joined())
        return StreamingResponse(
            iterate_in_threadpool(history.stream(frame, media_type)), media_type=media_type, headers={"x-row-count": str(frame.height)}
        )

    @application.post(
        "/v1/coverage",
        **_documented(schemas.CoverageAnswer, 404, 412, 413, 422, body=schemas.CoverageRequest),
        summary="Share of the eligible cells that are served now, against the declared bar",
    )
    async def feature_coverage(request: Request) -> Response:
        asked, tier = online.parse_coverage(await read_request_body(request, settings.serve_maximum_body_bytes), settings)
        answer = await client.get_online_features(asked.features, asked.entities, None, asked.policy, entity_ids=asked.entity_ids)
        metrics.read(answer)
        return _json(online.render_coverage(coverage(answer, client.catalogue, tier)))

    application.add_api_route(
        "/get-online-features",
        answered_by_the_gate,
        methods=["POST"],
        **_documented(schemas.FeastAnswer, 404, 413, 422, body=schemas.FeastRequest, not_found=str),
        summary="Newest values, by Feast's protocol",
    )
    application.add_api_route(
        "/v1/online-features",
        answered_by_the_gate,
        methods=["POST"],
        **_documented(schemas.OnlineAnswer, 404, 412, 413, 422, body=schemas.OnlineRequest),
        summary="Newest values with ages, flags and tiers; or those known at an instant",
    )


def _add_descriptions(application: FastAPI, service: Service) -> None:
    client = service.client

    @application.get("/v1/freshness", **_documented(list[schemas.StreamFreshness], 404, 422), summary="SLO state of each stream")
    async def freshness(view: Annotated[str | None, Query(description="only this view's streams")] = None) -> Response:
        return _json([state.as_dict() for state in await service.in_background(client.get_feature_freshness(view))])

    @application.get("/v1/slo", **_documented(list[schemas.SloMonth], 404, 422), summary="SLO attainment and error budget in a month")
    async def slo(
        month: Annotated[str | None, Query(pattern=MONTH, description="YYYY-MM; this month when not given")] = None,
        view: Annotated[str | None, Query(description="only this view's streams")] = None,
    ) -> Response:
        return _json([found.as_dict() for found in await service.in_background(client.get_slo_attainment(month, view))])

    @application.get(
        PAGE,
        response_class=Response,
        responses={200: {"content": {"text/html": {"schema": {"type": "string"}}}}, **_failures(401, 500, 503, 504)},
        summary="State of all streams and blocked partitions, as a page for people",
    )
    async def status() -> Response:
        page = status_page.status_page(await service.in_background(client.get_overview()))
        headers = {"content-security-policy": status_page.CONTENT_SECURITY_POLICY, "cache-control": "no-store"}
        return Response(page, media_type="text/html", headers=headers)

    @application.get("/v1/statistics", **_documented(schemas.RetrievalStatistics, 422), summary="Online reads of the last minutes")
    async def statistics(window_minutes: Annotated[float, Query(gt=0, le=1440)] = 60) -> Response:
        return _json({"process_id": os.getpid(), **asdict(client.get_retrieval_stats(window_minutes))})

    @application.get("/v1/views", **_documented(list[schemas.View]), summary="Feature views, as declared")
    async def views() -> Response:
        return _json([_view(view) for view in client.catalogue.views])

    @application.get(
        "/v1/views/{view}/statistics",
        **_documented(list[schemas.FeatureStatistics], 404, 422),
        summary="Distribution of each feature of a view; of the year up to now, when no instants are given",
    )
    async def view_statistics(
        view: str,
        start: Annotated[datetime | None, Query(description="exclusive; with time zone")] = None,
        end: Annotated[datetime | None, Query(description="inclusive; with time zone")] = None,
    ) -> Response:
        bounds = [None if moment is None else instant(moment.isoformat(), name) for name, moment in (("start", start), ("end", end))]
        frame = await service.in_background(client.get_feature_statistics(view, *bounds))
        return _json(frame.to_dicts())

    @application.get("/v1/services", **_documented(list[schemas.Service]), summary="Feature services, as declared")
    async def services() -> Response:
        return _json([asdict(client.get_feature_service_info(declared.name)) for declared in client.catalogue.services])

    @application.get(
        "/v1/services/{name}", **_documented(schemas.Service, 404, 422), summary="What a service answers and must be asked with"
    )
    async def one_service(name: str) -> Response:
        return _json(asdict(client.get_feature_service_info(name)))


def _add_health(application: FastAPI, service: Service) -> None:
    async def health_of_reads() -> tuple[bool, dict[str, Any]]:
        tier, degraded = await service.first_answering_tier(), list(service.client.degraded)
        serves = tier is not None and not service.is_draining
        status = "draining" if service.is_draining else "down" if tier is None else "degraded" if degraded or tier != "redis" else "ok"
        return serves, {"status": status, "tier": tier, "degraded": degraded}

    @application.get("/health", **_documented(schemas.Health, unavailable=schemas.Health), summary="What is degraded")
    async def health() -> Response:
        serves, found = await health_of_reads()
        return _json(found, 200 if serves else 503)

    @application.get("/health/live", **_documented(schemas.Health), summary="Whether this process works; asks no store")
    async def live() -> Response:
        return _json({"status": "draining" if service.is_draining else "ok", "tier": None, "degraded": list(service.client.degraded)})

    @application.get("/health/ready", **_documented(schemas.Health, unavailable=schemas.Health), summary="Whether reads are answered")
    async def ready() -> Response:
        serves, found = await health_of_reads()
        return _json(found, 200 if serves else 503)

    @application.get(
        "/metrics",
        response_class=Response,
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}, **_failures(401, 503, 504)},
        summary="Prometheus metrics of all workers",
    )
    async def exposition() -> Response:
        return Response(metrics.exposition(service.metrics_folder), media_type=PLAIN_TEXT)


def _documented(
    model: Any, *statuses: int, body: type[BaseModel] | None = None, not_found: Any = None, unavailable: Any = None
) -> dict[str, Any]:
    """Arguments of a route: its answers, its errors, and the schema of a body that is taken apart by hand."""
    responses = _failures(401, *statuses, 500, 503, 504)
    if not_found is not None:
        responses[404]["model"] = not_found
    if unavailable is not None:
        responses[503]["model"] = schemas.Failure | unavailable
    arguments: dict[str, Any] = {"responses": responses}
    if model is not None:
        arguments["response_model"] = model
    if body is not None:
        arguments["openapi_extra"] = {"requestBody": {"required": True, "content": {JSON: {"schema": _inlined(body)}}}}
    return arguments


def _history_documented() -> dict[str, Any]:
    arguments = _documented(None, 404, 406, 413, 415, 422, body=schemas.HistoryRequest)
    binary = {"schema": {"type": "string", "format": "binary"}}
    arguments["responses"][200] = {
        "description": "the rows with their features",
        "content": {uploads.ARROW: binary, uploads.PARQUET: binary},
    }
    extra = arguments["openapi_extra"]
    extra["requestBody"]["content"] |= {uploads.ARROW: binary, uploads.PARQUET: binary}
    properties = extra["requestBody"]["content"][JSON]["schema"]["properties"]
    extra["parameters"] = [
        {
            "name": name,
            "in": "query",
            "required": False,
            "schema": _without_null(properties[name]),
            "description": "only with a binary body",
        }
        for name in properties
        if name != "entities"
    ]
    return arguments


def _without_null(schema: dict[str, Any]) -> dict[str, Any]:
    """A query has no null."""
    return next(branch for branch in schema["anyOf"] if branch.get("type") != "null")


def _failures(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": schemas.Failure} for status in statuses}


def _inlined(model: type[BaseModel]) -> dict[str, Any]:
    """A schema without references to definitions of its own, which the document does not have."""
    schema = model.model_json_schema()
    definitions = schema.pop("$defs", {})

    def resolved(part: Any) -> Any:
        if isinstance(part, dict):
            if "$ref" in part:
                return resolved(definitions[part["$ref"].rpartition("/")[2]])
            return {name: resolved(value) for name, value in part.items()}
        return [resolved(value) for value in part] if isinstance(part, list) else part

    inlined: dict[str, Any] = resolved(schema)
    return inlined


def _json(content: Any, status: int = 200) -> Response:
    return Response(orjson.dumps(content), status, media_type=JSON)


def _respond(answer: Answer) -> Response:
    return Response(answer.body, answer.status, dict(answer.headers), answer.media_type)


async def _failed(_: Request, error: Exception) -> Response:
    metrics.refused(error)
    return _respond(failure(error))


async def _malformed(_: Request, error: Exception) -> Response:
    complaints: Sequence[Any] = error.errors() if isinstance(error, RequestValidationError) else ()
    said = "; ".join(f"{'.'.join(map(str, complaint['loc']))}: {complaint['msg']}" for complaint in complaints)
    return _respond(failure(HttpError(422, "MalformedRequest", said)))


async def _no_route(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    name = {404: "NoSuchRoute", 405: "MethodNotAllowed"}.get(status, "HttpError")
    headers = dict(error.headers or {}) if isinstance(error, HTTPException) else {}
    return _respond(failure(HttpError(status, name, f"{request.method} {request.url.path}: no such route; see /openapi.json", headers)))


def _view(view: FeatureView) -> dict[str, Any]:
    return {
        "name": view.label,
        "version": view.version,
        "description": view.description,
        "is_online": view.online,
        "join_keys": view.join_keys,
        "time_to_live_seconds": view.longest_ttl.total_seconds(),
        "slo_seconds": view.slo.max_lag.total_seconds(),
        "features": [{"name": feature.name, "unit": feature.indicator.unit.value, "formula": feature.formula} for feature in view.features],
    }
