"""Address and credentials of each provider, from variables named after it. What a provider delivers is declared in `features.sources`."""

import re
from pathlib import Path
from typing import Annotated

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import SettingsConfigDict

from featurestore_dagster.errors import ConfigurationError
from featurestore_dagster.settings import EnvironmentSettings, Setting

BaseUrl = Annotated[str, Field(pattern=r"^https?://[^\s/@?#]+(/[^\s?#]*)?$")]
URL = "an address, https://host or http://host:port, without credentials"
CREDENTIAL = "any text; needed when the source is switched on"
NAME_AND_EMAIL = re.compile(r"\S.* \S+@\S+\.\S+")


class ProviderSettings(EnvironmentSettings):
    """What the providers' settings share: none needs its credential before it fetches."""

    base_url: BaseUrl

    def required(self, field_name: str) -> SecretStr:
        """The credential of this field.

        Raises:
            ConfigurationError: It is not set; the message names its variable.
        """
        value: SecretStr = getattr(self, field_name)
        if not value.get_secret_value():
            variable = self.variable(field_name)
            raise ConfigurationError(f"{variable} is not set; set it, or take the source out of FEATURESTORE_SOURCES")
        return value


class BinanceSettings(ProviderSettings):
    """Binance spot: public data."""

    model_config = SettingsConfigDict(env_prefix="BINANCE_")

    base_url: BaseUrl = Field("https://api.binance.com", description=URL)


class EodhdSettings(ProviderSettings):
    """EODHD."""

    model_config = SettingsConfigDict(env_prefix="EODHD_")

    base_url: BaseUrl = Field("https://eodhd.com", description=URL)
    api_token: SecretStr = Field(SecretStr(""), description=CREDENTIAL)


class AlpacaSettings(ProviderSettings):
    """Alpaca market data."""

    model_config = SettingsConfigDict(env_prefix="ALPACA_")

    base_url: BaseUrl = Field("https://data.alpaca.markets", description=URL)
    api_key_id: SecretStr = Field(SecretStr(""), description=CREDENTIAL)
    api_secret_key: SecretStr = Field(SecretStr(""), description=CREDENTIAL)


class FredSettings(ProviderSettings):
    """FRED and ALFRED."""

    model_config = SettingsConfigDict(env_prefix="FRED_")

    base_url: BaseUrl = Field("https://api.stlouisfed.org", description=URL)
    api_key: SecretStr = Field(SecretStr(""), description=CREDENTIAL)


class SecSettings(ProviderSettings):
    """SEC EDGAR: public data, for those who say who they are."""

    model_config = SettingsConfigDict(env_prefix="SEC_")

    base_url: BaseUrl = Field("https://data.sec.gov", description=URL)
    user_agent: SecretStr = Field(SecretStr(""), description="a name and an e-mail address (Jane Doe jane@example.org); needed to fetch")

    @field_validator("user_agent")
    @classmethod
    def _names_somebody(cls, user_agent: SecretStr) -> SecretStr:
        if user_agent.get_secret_value() and not NAME_AND_EMAIL.fullmatch(user_agent.get_secret_value()):
            raise ValueError("not a name and an e-mail address")
        return user_agent


class NewsSettings(ProviderSettings):
    """The feed of news and sentiment: a service of one's own that speaks the form documented in `sources.news`."""

    model_config = SettingsConfigDict(env_prefix="NEWS_")

    base_url: BaseUrl = Field("http://127.0.0.1:8090", description=URL)
    token: SecretStr = Field(SecretStr(""), description="any text, sent in the header X-Api-Key; empty when the feed asks for none")


class FearGreedSettings(ProviderSettings):
    """alternative.me: public data."""

    model_config = SettingsConfigDict(env_prefix="FEAR_GREED_")

    base_url: BaseUrl = Field("https://api.alternative.me", description=URL)


class PositionsSettings(EnvironmentSettings):
    """The file to which the execution service appends positions."""

    model_config = SettingsConfigDict(env_prefix="POSITIONS_")

    file: Path | None = Field(None, description="a file of JSON lines; needed when the source is switched on")


ALL: tuple[type[EnvironmentSettings], ...] = (
    BinanceSettings,
    EodhdSettings,
    AlpacaSettings,
    FredSettings,
    SecSettings,
    NewsSettings,
    FearGreedSettings,
    PositionsSettings,
)


def describe() -> list[Setting]:
    """Every provider's settings in declaration order, secrets masked.

    Raises:
        ConfigurationError: A value is wrong.
    """
    return [line for provider in ALL for line in provider().rows()]
