"""`featurestore demo` and the commands around it, as a user types them."""

import json
import subprocess

import pytest

from featurestore_dagster.cli.app import app
from featurestore_dagster.features import CATALOGUE
from tests.e2e.conftest import DEMO_START, Installation


def test_demo_materialises_serves_and_says_what_it_did(demo):
    _, printed = demo
    run = printed["run"]
    assert run["succeeded"]
    assert run["first"] == DEMO_START
    assert run["last"] == "2018-12-31"
    assert run["sessions"] == 63
    assert run["rows_published"] > 1000
    assert run["rows_quarantined"] == 0
    values = printed["vector"]["rows"][0]["features"]
    assert values["portfolio_macro_features:vix"]["value"] == pytest.approx(28.34)
    rsi = values["momentum_features:rsi_14"]
    assert {"value", "unit", "status", "event_timestamp", "age_seconds", "flags", "tier"} <= rsi.keys()
    assert rsi["status"] == "PRESENT"
    assert rsi["event_timestamp"].startswith("2018-12-31T21:00")
    assert values["portfolio_macro_features:treasury_10y"]["status"] == "NULL_VALUE"
    sampled = CATALOGUE.with_sources(("samples", "files"))
    assert {(state["view"], state["stream"]) for state in printed["slo"]} == {
        (view.name, stream.name) for view in sampled.views for stream in view.streams if sampled.is_fed(stream)
    }
    assert {"start stores", "apply schema"} <= printed["seconds"].keys()


def test_second_demo_publishes_nothing_and_says_so(installation):
    done = Installation(installation.folder, variables={}).run("demo", "--start", DEMO_START)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Nothing new" in done.stdout
    assert "0 rows published" in done.stdout
    assert "FEATURESTORE_CLOCK=2018-12-31T22:00:00Z make up" in done.stdout


def test_vector_is_served_after_the_stores_were_stopped(installation):
    assert installation.run("down").returncode == 0
    answer = installation.json("get", "technical_indicators_service", "--symbol", "SPX")
    found = answer["rows"][0]["features"]["technical_indicators_view:rsi_14"]
    assert found["status"] == "PRESENT"
    assert found["tier"] == "redis"
    then = installation.json("get", "technical_indicators_service", "--symbol", "SPX", "--as-of", "2018-12-31T22:00:00Z")
    assert then["rows"][0]["features"]["technical_indicators_view:rsi_14"]["value"] == found["value"]


@pytest.mark.parametrize(
    "name", [command.name or command.callback.__name__ for command in app.registered_commands if command.name != "feast"]
)
def test_each_command_has_help_with_an_example(installation, name):
    done = installation.run(name, "--help")
    assert done.returncode == 0
    assert "Example:" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["get", "momentum_feature:rsi_14", "--symbol", "SPX"], 1, "momentum_features"),
        (["get", "momentum_features:rsi_14"], 1, "symbol"),
        (["get", "momentum_features:rsi_14", "--symbol", "SPX", "--as-of", "2018-12-31"], 2, "time zone"),
        (["get", "momentum_features:rsi_14", "--symbol", "NOPE"], 1, "NOT_FOUND"),
        (["materialize", "2018-13-01", "2018-12-31"], 2, "YYYY-MM-DD"),
        (["materialize", "2018-12-31", "2018-12-01"], 2, "after END"),
        (["materialize", "2018-12-01", "2018-12-31", "--calendar", "MOON"], 2, "XNYS"),
        (["materialize", "2018-12-25", "2018-12-25", "--calendar", "XNYS"], 1, "no session"),
        (["info", "nope"], 1, "nearest"),
        (["quarantine", "show", "12345"], 1, "quarantine list"),
        (["nope"], 2, "No such command"),
    ],
)
def test_exit_codes_and_messages(installation, arguments, code, says):
    done = installation.run(*arguments)
    assert (done.returncode, says in done.stdout + done.stderr) == (code, True), done.stdout + done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("arguments", [["list"], ["info"], ["info", "momentum_features"], ["plan"], ["apply"], ["quarantine", "list"]])
def test_json_is_json(installation, arguments):
    assert installation.json(*arguments) is not None


def test_wrong_settings_are_one_line_with_what_is_allowed(installation):
    wrong = Installation(installation.folder, variables={"FEATURESTORE_ENVIRONMENT": "staging"}).run("plan")
    assert wrong.returncode == 1
    assert "development, test, production" in wrong.stderr
    assert "Traceback" not in wrong.stderr
    external = {"POSTGRES_HOST": "127.0.0.1", "POSTGRES_PORT": "1", "POSTGRES_PASSWORD": "s3cret", "REDIS_PORT": "1"}
    unreachable = Installation(installation.folder, variables=external).run("plan")
    assert unreachable.returncode == 1
    assert "does not answer" in unreachable.stderr
    assert "s3cret" not in unreachable.stderr + unreachable.stdout
    assert "Traceback" not in unreachable.stderr


def test_audit_passes_and_names_the_mend_of_a_drift(installation):
    from featurestore_dagster.settings import Settings
    from featurestore_dagster.stores.embedded import EmbeddedServices
    from featurestore_dagster.stores.postgres.connection import connect

    findings = {finding["subject"]: finding for finding in installation.json("audit")}
    assert all(finding["passed"] for finding in findings.values()), findings
    with EmbeddedServices(Settings(data_folder=installation.folder)) as settings:
        with connect(settings.postgres) as connection:
            connection.execute("alter table features.momentum_features rename column rsi_14 to rsi_15")
        try:
            broken = installation.run("audit", "--json")
        finally:
            with connect(settings.postgres) as connection:
                connection.execute("alter table features.momentum_features rename column rsi_15 to rsi_14")
    failed = [finding for finding in json.loads(broken.stdout) if not finding["passed"]]
    assert broken.returncode == 1
    assert "rsi_14 is missing" in failed[0]["detail"]
    assert "featurestore apply" in failed[0]["mend"]


def test_env_is_for_running_stores(installation):
    from featurestore_dagster.settings import Settings
    from featurestore_dagster.stores.embedded import EmbeddedServices

    stopped = installation.run("env")
    assert stopped.returncode == 1
    assert "featurestore up" in stopped.stderr
    with EmbeddedServices(Settings(data_folder=installation.folder)) as settings:
        assert installation.json("env")["FEAST_REDIS"] == settings.redis.feast_connection_string
        exports = installation.run("env").stdout
        done = subprocess.run(["sh", "-c", f'{exports}\nprintf %s "$POSTGRES_PASSWORD"'], capture_output=True, text=True, check=True)
    assert done.stdout == settings.postgres.password.get_secret_value()


def test_teardown_asks_and_no_deletes_nothing(installation):
    refused = installation.run("teardown", text="n\n")
    assert refused.returncode == 1
    assert "nothing was deleted" in refused.stdout
    assert installation.json("plan") == []
