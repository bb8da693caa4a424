"""docker-compose.yml, Dockerfile, dagster.yaml and workspace.yaml, as far as they can be judged without an engine."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from featurestore_dagster.monitoring.metrics import Job
from featurestore_dagster.orchestration.propagation import PROPAGATION_TAG
from featurestore_dagster.settings import Settings
from featurestore_dagster.sources import provider_settings
from featurestore_dagster.stores.embedded import redis_server
from featurestore_dagster.supervisor.tree import NAMES

PROJECT = Path(__file__).resolve().parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((PROJECT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = sorted(name for name, service in SERVICES.items() if service["image"] == "featurestore-dagster")
PROVIDER_VARIABLES = {provider.variable(name) for provider in provider_settings.ALL for name in provider.model_fields}
REFERENCE = re.compile(r"(?<!\$)\$\{(\w+)(?:(:-|:\?)([^}]*))?\}")


def references() -> list[tuple[str, str, str]]:
    """Name, operator and default of every variable in the file."""
    return REFERENCE.findall((PROJECT / "docker-compose.yml").read_text())


def test_profiles_hold_what_a_deployment_needs() -> None:
    profiles = {name: service["profiles"] for name, service in SERVICES.items()}
    assert {name for name, of in profiles.items() if of == ["data"]} == {"postgres", "redis"}
    assert {name for name, of in profiles.items() if of == ["apps"]} == {"schema", "serve", *NAMES}
    assert {name for name, of in profiles.items() if of == ["observability"]} == {"prometheus", "grafana"}
    assert SERVICES["postgres"]["image"].startswith("timescale/timescaledb:")
    assert int(SERVICES["postgres"]["image"].rsplit("pg")[-1]) >= 16
    assert int(SERVICES["redis"]["image"].removeprefix("redis:").split(".")[0]) >= 7
    assert all(re.search(r":[^:]*\d", service["image"]) for name, service in SERVICES.items() if name not in OURS), "a tag that moves"


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_d7_a_service_is_checked_unprivileged_and_loopback_only(name: str) -> None:
    service = SERVICES[name]
    if service["restart"] != "no":
        assert service["healthcheck"]["test"][0] in {"CMD", "CMD-SHELL"}
        assert {"interval", "timeout", "retries"} <= set(service["healthcheck"])
    assert "no-new-privileges:true" in service["security_opt"]
    assert name in OURS or service["user"] in {"postgres", "redis", "nobody", "grafana"}
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
    assert not service.get("privileged")


@pytest.mark.parametrize("name", OURS)
def test_our_services_run_programs_that_exist_with_settings_that_exist(name: str) -> None:
    service = SERVICES[name]
    scripts = (PROJECT / "pyproject.toml").read_text()
    if "entrypoint" in service:
        assert re.search(rf"^{service['entrypoint'][0]} = ", scripts, re.MULTILINE)
    else:
        action, process, *options = service["command"]
        assert (action, set(options) <= {"--read-only"}) == ("run", True)
        assert process in NAMES
        assert service["healthcheck"]["test"][1:] == ["python", "-m", "featurestore_dagster.supervisor", "check", process]
    assert set(service["environment"]) <= set(Settings.variables()) | PROVIDER_VARIABLES
    assert service["environment"]["FEATURESTORE_SERVICES"] == "external"


def test_defaults_in_the_file_are_accepted_by_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"POSTGRES_PASSWORD": "a", "REDIS_PASSWORD": "b"}
    for name, value in SERVICES["code-server"]["environment"].items():
        monkeypatch.setenv(name, REFERENCE.sub(lambda match: given.get(match[1], match[3]), value))
    settings = Settings()
    assert (settings.postgres.host, settings.redis.host, settings.embedded) == ("postgres", "redis", False)
    assert settings.source_names == ("samples", "files")
    assert provider_settings.PositionsSettings().file is None
    assert settings.home == Path("/data/dagster")


def test_passwords_have_no_default() -> None:
    secrets = [reference for reference in references() if "PASSWORD" in reference[0]]
    assert len(secrets) >= 4
    assert {operator for _, operator, _ in secrets} == {":?"}
    known = set(Settings.variables()) | PROVIDER_VARIABLES
    assert {name for name, *_ in references() if not name.endswith("_PUBLISHED_PORT")} <= known


@pytest.mark.parametrize("name", OURS)
def test_providers_are_configured_from_outside_and_by_nothing_in_the_file(name: str) -> None:
    passed = {variable: SERVICES[name]["environment"][variable] for variable in {"FEATURESTORE_SOURCES", *PROVIDER_VARIABLES}}
    assert passed == {variable: f"${{{variable}:-}}" for variable in passed}


def test_names_in_the_file_refer_to_something() -> None:
    for service in SERVICES.values():
        assert set(service.get("depends_on", {})) <= set(SERVICES)
        assert {config["source"] for config in service.get("configs", [])} <= set(COMPOSE["configs"])
        assert {config.split(":")[0] for config in service.get("secrets", [])} <= set(COMPOSE.get("secrets", {}))
        for source in (volume.split(":")[0] for volume in service.get("volumes", [])):
            assert (PROJECT / source).is_dir() if source.startswith(".") else source in COMPOSE["volumes"]
    for name, dependency in ((name, on) for service in SERVICES.values() for name, on in service.get("depends_on", {}).items()):
        assert dependency.get("required", True) == (SERVICES[name]["profiles"] != ["data"])  # the data profile may be left out


def test_prometheus_scrapes_both_of_our_processes_where_they_listen() -> None:
    config = yaml.safe_load((PROJECT / "monitoring/prometheus/prometheus.yml").read_text())
    targets = {job["job_name"]: job["static_configs"][0]["targets"][0].split(":") for job in config["scrape_configs"]}
    assert {Job(name): service for name, (service, _) in targets.items()} == {Job.EXPORTER: "exporter", Job.SERVE: "serve"}
    for service, port in targets.values():
        assert SERVICES[service]["ports"][0].endswith(f":{port}")
    assert [(PROJECT / "monitoring/prometheus" / name).exists() for name in config["rule_files"]] == [True]
    boards = yaml.safe_load((PROJECT / "monitoring/grafana/provisioning/dashboards/boards.yml").read_text())
    mounted = dict(volume.split(":")[:2] for volume in SERVICES["grafana"]["volumes"])
    assert mounted["./monitoring/grafana/boards"] == boards["providers"][0]["options"]["path"]
    [source] = yaml.safe_load((PROJECT / "monitoring/grafana/provisioning/datasources/prometheus.yml").read_text())["datasources"]
    assert source["url"] == "http://prometheus:9090"


def test_redis_is_configured_as_the_embedded_one() -> None:
    options = dict(line.split(" ", 1) for line in COMPOSE["configs"]["redis"]["content"].splitlines())
    ours = {name: value for name, value in redis_server.OPTIONS.items() if name not in {"bind", "set-proc-title"}}
    assert {name: options[name] for name in ours} == ours


def test_the_image_is_not_root_and_holds_no_secrets() -> None:
    lines = (PROJECT / "Dockerfile").read_text().splitlines()
    last_stage = lines[max(number for number, line in enumerate(lines) if line.startswith("FROM")) :]
    assert "USER 10001:10001" in last_stage
    assert not [line for line in lines if "PASSWORD" in line or "index-url" in line]
    assert any("--require-hashes" in line for line in lines)
    ignored = (PROJECT / ".dockerignore").read_text().split()
    assert {".git", ".env", ".venv", ".featurestore"} <= set(ignored)


def test_the_workspace_names_variables_that_children_get() -> None:
    [location] = yaml.safe_load((PROJECT / "workspace.yaml").read_text())["load_from"]
    server = location["grpc_server"]
    assert {server["host"]["env"], server["port"]["env"]} <= set(Settings.variables())


def test_the_instance_has_no_telemetry_and_a_slot_for_live_runs_beside_a_backfill_and_a_correction() -> None:
    instance = yaml.safe_load((PROJECT / "dagster.yaml").read_text())
    storages = [instance[f"{kind}_storage"]["config"]["postgres_url"] for kind in ("run", "schedule", "event_log")]
    assert storages == [{"env": "DAGSTER_PG_URL"}] * 3
    assert instance["telemetry"] == {"enabled": False}
    alone = {"dagster/backfill", PROPAGATION_TAG}
    assert {limit["key"]: limit["limit"] for limit in instance["concurrency"]["runs"]["tag_concurrency_limits"]} == dict.fromkeys(alone, 1)
    assert len(alone) < instance["concurrency"]["pools"]["default_limit"] < instance["concurrency"]["runs"]["max_concurrent_runs"]
    assert instance["sensors"] == {"use_threads": True, "num_workers": 4}
    assert instance["run_monitoring"]["enabled"]
    assert instance["freshness"]["enabled"]
    assert (instance["run_retries"]["max_retries"], instance["run_retries"]["retry_on_asset_or_op_failure"]) == (1, False)
