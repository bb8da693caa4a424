"""Sending: one message to one channel, by Apprise. What is sent, when and how often belongs to `monitoring.alerting`. Knows no store."""

import hashlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import parse_qsl, urlsplit

from pydantic import SecretStr

from featurestore_dagster.errors import ConfigurationError
from featurestore_dagster.model.alert import AlertEvent
from featurestore_dagster.settings import MASK, Settings

LONGEST_ERROR = 500
SHORTEST_SECRET = 4


@dataclass(frozen=True)
class Channel:
    """A receiver; `name` tells channels apart without telling their secrets."""

    name: str
    url: SecretStr


def channels(settings: Settings, *, escalated: bool = True) -> tuple[Channel, ...]:
    """Who is told: everybody of `alert_urls`, and when `escalated` those of `escalation_urls` too.

    Raises:
        ConfigurationError: A URL is none that Apprise knows.
    """
    urls = settings.alert_urls.get_secret_value().split()
    if escalated:
        urls += settings.escalation_urls.get_secret_value().split()
    return tuple(map(_channel, dict.fromkeys(urls)))


def _channel(url: str) -> Channel:
    import apprise

    if apprise.Apprise.instantiate(url) is None:
        raise _unknown(url)
    return Channel(f"{urlsplit(url).scheme}-{hashlib.sha256(url.encode()).hexdigest()[:8]}", SecretStr(url))


def _unknown(url: str) -> ConfigurationError:
    return ConfigurationError(
        f"an alert channel ({urlsplit(url).scheme or 'no scheme'}://{MASK}) is no URL that Apprise knows; "
        "see https://github.com/caronc/apprise/wiki, and mend FEATURESTORE_ALERT_URLS or FEATURESTORE_ESCALATION_URLS"
    )


def send(channel: Channel, event: AlertEvent, title: str, body: str, key: str) -> str | None:
    """Send a message; None when the channel took it, else why it did not, without the channel's secrets.

    `key` goes with it as header `Idempotency-Key` where the channel has headers (webhooks, e-mail): a receiver that keeps the keys tells a
    repetition from news.
    """
    import apprise

    url = channel.url.get_secret_value()
    receiver = apprise.Apprise.instantiate(url)
    if receiver is None:
        raise _unknown(url)
    if isinstance(headers := getattr(receiver, "headers", None), dict):
        headers["Idempotency-Key"] = key
    kind = apprise.NotifyType.SUCCESS if event is AlertEvent.RESOLVED else apprise.NotifyType.FAILURE
    with apprise.LogCapture(level=logging.WARNING, fmt="%(message)s") as said:  # type: ignore[no-untyped-call]
        if receiver.notify(body=body, title=title, notify_type=kind, body_format=apprise.NotifyFormat.TEXT):
            return None
        reason = " ".join(said.getvalue().split()) or "it did not say why"
    for secret in sorted(_secrets(url), key=len, reverse=True):
        reason = reason.replace(secret, MASK)
    return reason[:LONGEST_ERROR]


def _secrets(url: str) -> Iterator[str]:
    """Every part of a URL that may be one; a host without a dot may be a token, as Slack's is."""
    parts = urlsplit(url)
    login, _, place = parts.netloc.rpartition("@")
    values = (value for _, value in parse_qsl(parts.query))
    found = [*login.split(":"), *parts.path.split("/"), *values, *([] if "." in place else [place])]
    return (part for part in found if len(part) >= SHORTEST_SECRET)
