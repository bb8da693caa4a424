"""Channels are told apart and complained about without their secrets."""

import pytest
from pydantic import SecretStr

from featurestore_dagster.errors import ConfigurationError
from featurestore_dagster.model.alert import AlertEvent
from featurestore_dagster.monitoring.notifications import _secrets, channels, send
from featurestore_dagster.settings import Settings

SLACK = "slack://T1JJ3T3L2/A1BRTD4JD/TIiajkdnlazkcOXrIdevi7FQ"
MAIL = "mailtos://user:pass-word@mail.example.com?to=duty@example.com"


def test_channels_have_names_that_tell_no_secret() -> None:
    told = Settings(alert_urls=SecretStr(f"{SLACK}  {MAIL}\n{SLACK}"), escalation_urls=SecretStr("jsons://pager.example.com/hook-1"))
    usual, everybody = ([channel.name for channel in channels(told, escalated=escalated)] for escalated in (False, True))
    assert [name.partition("-")[0] for name in everybody] == ["slack", "mailtos", "jsons"]
    assert usual == everybody[:2]
    assert not any(secret in str(everybody) for url in (SLACK, MAIL) for secret in _secrets(url))
    shown = {setting.name: setting.value for setting in told.describe()}
    assert set(shown["FEATURESTORE_ALERT_URLS"]) == {"*"}


@pytest.mark.parametrize(
    ("url", "secrets"),
    [(SLACK, {"T1JJ3T3L2", "A1BRTD4JD", "TIiajkdnlazkcOXrIdevi7FQ"}), (MAIL, {"user", "pass-word", "duty@example.com"})],
)
def test_every_part_of_a_url_that_may_be_a_secret_is_masked(url: str, secrets: set[str]) -> None:
    assert set(_secrets(url)) == secrets


@pytest.mark.parametrize("url", ["slack://one-token-only", "nothing", "carrier-pigeon://coop/7"])
def test_what_apprise_does_not_know_is_refused_without_telling_it(url: str) -> None:
    with pytest.raises(ConfigurationError, match="no URL that Apprise knows") as refused:
        channels(Settings(alert_urls=SecretStr(url)))
    assert url not in str(refused.value)


def test_nobody_is_told_when_no_channel_is_configured() -> None:
    assert channels(Settings()) == ()


def test_a_receiver_that_is_not_there_says_so_without_its_token() -> None:
    (channel,) = channels(Settings(alert_urls=SecretStr("json://127.0.0.1:9/token-of-mine")))
    error = send(channel, AlertEvent.OPENED, "title", "body", "1-opened")
    assert error is not None
    assert "127.0.0.1" in error
    assert "token-of-mine" not in error
