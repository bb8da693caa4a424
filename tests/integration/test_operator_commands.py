"""What an operator types: freshness, slo, alerts and silences, over real stores."""

import json
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from featurestore_dagster.cli.alerts import list_alerts
from featurestore_dagster.cli.app import app
from featurestore_dagster.errors import ConfigurationError, MalformedDataError, RefusedError, UnknownNameError
from featurestore_dagster.model.alert import AlertKind, AlertState, Problem
from featurestore_dagster.settings import Settings
from featurestore_dagster.stores.postgres import AlertStore

RUNNER = CliRunner()
CLOCK = datetime(2018, 12, 31, 22, tzinfo=UTC)
Command = Callable[..., tuple[int, str]]


def environment(settings: Settings) -> dict[str, str]:
    return settings.model_copy(update={"services": "external", "clock": CLOCK.isoformat()}).exports() | {"COLUMNS": "200"}


@pytest.fixture
def featurestore(fresh_database: Settings) -> Command:
    """Exit code and output of a command."""

    def run(*arguments: str) -> tuple[int, str]:
        result = RUNNER.invoke(app, arguments, env=environment(fresh_database), catch_exceptions=False)
        return result.exit_code, result.output

    return run


def parsed(answer: tuple[int, str]) -> Any:
    return json.loads(answer[1])


@pytest.fixture
def alert(fresh_database: Settings) -> None:
    problem = Problem(AlertKind.VIEW_OVERDUE, "momentum_features", "momentum_features/us", CLOCK, "late", "the source delivers nothing")
    with AlertStore(fresh_database.postgres).evaluation() as evaluation:
        evaluation.begin(problem, AlertState.OPEN, CLOCK)


def test_freshness_and_slo_are_told_with_their_exit_codes(featurestore: Command) -> None:
    code, table = featurestore("freshness", "momentum_features")
    assert (code, "NEVER" in table, "us_equity_1d" in table) == (1, True, True)
    states = parsed(featurestore("freshness", "momentum_features", "--json"))
    assert {(state["view"], state["state"], state["watermark"]) for state in states} == {("momentum_features", "NEVER", None)}
    assert all(state["due_at"] == datetime.fromisoformat(state["due_at"]).isoformat() for state in states)
    code, text = featurestore("slo", "momentum_features", "--json")
    assert (code, {(month["month"], month["attainment"]) for month in json.loads(text)}) == (0, {("2018-12", None)})
    assert "SLO in 2018-12" in featurestore("slo")[1]
    for refused, error in ((("slo", "--month", "december"), MalformedDataError), (("freshness", "momentum"), UnknownNameError)):
        with pytest.raises(error):
            featurestore(*refused)
    assert featurestore("freshness", "--watch", "--json")[0] == 2


@pytest.mark.usefixtures("alert")
def test_an_alert_is_listed_silenced_and_told_again(featurestore: Command) -> None:
    code, text = featurestore("alerts")
    assert (code, "momentum_features/us" in text, "nobody is told" in text) == (1, True, True)
    assert "the source delivers nothing" in text
    assert featurestore("alerts", "--json", "list") == featurestore("alerts", "--json") == featurestore("alerts", "list", "--json")
    assert parsed(featurestore("alerts", "--json", "list"))["alerts"][0]["problem"]["since"] == CLOCK.isoformat()
    assert featurestore("alerts", "silence", "momentum_features", "--for", "2h", "--reason", "roof")[0] == 0
    (silence,) = parsed(featurestore("alerts", "list", "--json"))["silences"]
    assert (silence["name"], silence["reason"]) == ("momentum_features", "roof")
    assert datetime.fromisoformat(silence["ends_at"]) == CLOCK + timedelta(hours=2)
    assert featurestore("alerts", "unsilence", "momentum_features")[0] == 0
    assert parsed(featurestore("alerts", "list", "--json"))["silences"] == []
    with pytest.raises(RefusedError, match="is not silenced"):
        featurestore("alerts", "unsilence", "momentum_features")


@pytest.mark.parametrize("name", ["fx_path", "drift_job", "technical_indicators_view/fx_1h", "features.momentum_features.us_equity_1d"])
def test_what_alerts_name_can_be_silenced_before_it_alerts(featurestore: Command, name: str) -> None:
    assert featurestore("alerts", "silence", name, "--for", "2h", "--reason", "planned maintenance")[0] == 0
    assert [silence["name"] for silence in parsed(featurestore("alerts", "list", "--json"))["silences"]] == [name]


def test_a_silence_has_a_reason(featurestore: Command) -> None:
    code, text = featurestore("alerts", "silence", "momentum_features", "--for", "2h", "--reason", " ")
    assert (code, "needs a reason" in text) == (2, True)


LISTED = "allowed, from the first listing to the clock's session: 1999-01-04..2018-12-31 (XNYS); "


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        pytest.param(("backfill", "momentum_features", "2019-01-02", "2019-12-31"), LISTED, id="the clock's future"),
        pytest.param(("backfill", "momentum_features", "1950-01-02", "1950-12-31"), LISTED, id="before the first listing"),
        pytest.param(("materialize", "2018-12-25", "2018-12-25", "--calendar", "XNYS"), LISTED, id="a holiday"),
        pytest.param(
            ("backfill", "momentum_features", "2018-12-03", "2018-12-31", "--stream", "crypto_1d"),
            "no source of momentum_features, crypto_1d, is switched on, only samples,files; allowed: binance; ",
            id="no source",
        ),
    ],
)
def test_a_range_without_a_session_is_refused_with_what_is_allowed(featurestore: Command, arguments: tuple[str, ...], says: str) -> None:
    with pytest.raises(RefusedError) as refused:
        featurestore(*arguments)
    assert says in str(refused.value)


@pytest.mark.parametrize("duration", ["2", "0h", "2w", "-1h", "100d", "2h 30m"])
def test_a_silence_has_a_duration_that_ends(duration: str) -> None:
    refused = RUNNER.invoke(app, ["alerts", "silence", "momentum_features", f"--for={duration}", "--reason", "x"], env={"COLUMNS": "200"})
    assert (refused.exit_code, "is no duration" in refused.output) == (2, True)


def test_a_silence_of_what_does_not_exist_is_refused(featurestore: Command) -> None:
    with pytest.raises(UnknownNameError, match="momentum_features"):
        featurestore("alerts", "silence", "momentum_feature", "--for", "2h", "--reason", "x")


def test_json_may_be_asked_for_before_the_subcommand(featurestore: Command) -> None:
    before, after = (featurestore("audit", *asked, "--view", "momentum_features") for asked in (("--json", "parity"), ("parity", "--json")))
    assert parsed(before)["vectors"] == parsed(after)["vectors"] == 0


def test_alerts_are_listed_though_a_channel_does_not_exist(
    fresh_database: Settings, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (environment(fresh_database) | {"FEATURESTORE_ALERT_URLS": "foo://bar"}).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError, match="no URL that Apprise knows"):
        list_alerts(history=False, limit=50, as_json=False)
    assert "Alerts: none" in capsys.readouterr().out


def test_up_refuses_an_alert_channel_that_does_not_exist(fresh_database: Settings, tmp_path: Path) -> None:
    (tmp_path / "file").touch()  # no data folder can be made of it: nothing starts
    variables = environment(fresh_database) | {"FEATURESTORE_ALERT_URLS": "foo://bar", "FEATURESTORE_DATA_FOLDER": str(tmp_path / "file")}
    with pytest.raises(ConfigurationError, match="no URL that Apprise knows"):
        RUNNER.invoke(app, ["up"], env=variables, catch_exceptions=False)


def test_dead_letters_are_put_up_again(featurestore: Command, fresh_database: Settings) -> None:
    store = AlertStore(fresh_database.postgres)
    assert featurestore("alerts", "retry") == (0, "0 messages are to be sent again\n")
    with store.evaluation() as evaluation:
        evaluation._connection.execute(
            "insert into ops.alert_deliveries (message_key, channel, event, alert_ids, title, body, state, attempts, queued_at,"
            " next_attempt_at, give_up_at) values ('1-opened', 'json-0', 'opened', '{1}', 't', 'b', 'dead', 9, now(), now(), now())"
        )
    assert "1-opened" in featurestore("alerts")[1]
    assert featurestore("alerts", "retry") == (0, "1 messages are to be sent again\n")
    assert [letter.state for letter in store.deliveries("pending")] == ["pending"]


def test_watching_ends_well_on_control_c(fresh_database: Settings) -> None:
    command = [sys.executable, "-m", "featurestore_dagster.cli", "freshness", "momentum_features", "--watch", "--every", "0.1"]
    terminal, inner = pty.openpty()
    variables = os.environ | environment(fresh_database) | {"TERM": "xterm"}
    with subprocess.Popen(command, stdout=inner, stderr=subprocess.STDOUT, env=variables) as process:
        os.close(inner)
        shown = b""
        while len(re.findall(rb"Freshness at", shown)) < 3:
            shown += os.read(terminal, 65536)
        process.send_signal(signal.SIGINT)
        while True:
            try:
                shown += os.read(terminal, 65536)
            except OSError:
                break
        assert process.wait(timeout=60) == 0, shown[-2000:]
    os.close(terminal)
    assert b"NEVER" in shown
    assert b"Traceback" not in shown
