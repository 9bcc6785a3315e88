"""One settings model, from the environment (FLOWSTONE_*) and from flowstone.toml."""

from __future__ import annotations

import itertools
import json
import os
import re
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
    TomlConfigSettingsSource,
)

from flowstone.embedded import postgres_url, valkey_url
from flowstone.errors import BadConfig, did_you_mean
from flowstone.names import DEFAULT_IO, NAME
from flowstone.queues import QUEUES, REDIS
from flowstone.resource_config import without_none
from flowstone.urls import NO_BROKER, NO_RESULTS, readable

PREFIX = "FLOWSTONE_"
FILE = "flowstone.toml"
MAX_DAYS = 36_500
MIN_SECRET = 32


class Retention(BaseModel):
    """After how many days what is deleted; what has none is kept for ever."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    tracebacks: int | None = Field(
        default=None, ge=0, le=MAX_DAYS, description="Messages and tracebacks of attempts."
    )
    checks: int | None = Field(
        default=None,
        ge=0,
        le=MAX_DAYS,
        description="Results of checks of values that were given up.",
    )
    runs: int | None = Field(
        default=None, ge=0, le=MAX_DAYS, description="Runs that have ended, and their steps."
    )

    @property
    def keeps_all(self) -> bool:
        """Whether nothing is deleted."""
        return self == Retention()


class _Environment(EnvSettingsSource):
    """The environment, in which null hides nothing that flowstone.toml says of a resource."""

    def __call__(self) -> dict[str, Any]:
        """Return the settings that the environment gives."""
        values = super().__call__()
        if isinstance(values.get("resources"), dict):
            values["resources"] = without_none(values["resources"])
        return values


class Settings(BaseSettings):
    """What a process needs to know. An environment variable wins over flowstone.toml.

    Without addresses, the servers are those that `flowstone dev` runs in `home`.
    """

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, toml_file=FILE, extra="forbid", frozen=True
    )

    home: Path = Field(
        Path(".flowstone"), description="Folder of the embedded servers and of local outputs."
    )
    assets: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="Modules that define assets, separated by commas."
    )
    database_url: SecretStr | None = Field(
        None, description="PostgreSQL, as postgresql://user:password@host:port/name."
    )
    broker_url: SecretStr | None = Field(
        None, description="Celery broker, as redis://host:port/0 or amqp://user:password@host//."
    )
    result_url: SecretStr | None = Field(
        None, description="Celery result backend, as redis://host:port/1. Chords need one."
    )
    output_url: str | None = Field(
        None, description="Where outputs are stored: a folder or an fsspec URL."
    )
    io: Mapping[str, str] = Field(
        {}, description="More places for outputs: names of IO managers, and their addresses."
    )
    pools: Mapping[str, int] = Field(
        {}, description="Pools, and how many slots each has that steps can take at once."
    )
    queues: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="More queues that assets may name, separated by commas."
    )
    queue_timeout: float = Field(
        3600,
        gt=0,
        description="Seconds after which a step fails in whose queue no worker looks.",
    )
    ageing: float = Field(
        300, gt=0, description="Seconds without a start after which a run is more urgent."
    )
    max_in_flight: int = Field(
        200, ge=1, description="The most steps of one run that are dispatched at once."
    )
    lease_seconds: float = Field(
        60, gt=0, description="How long a worker may be silent before its steps are run again."
    )
    reconcile_seconds: float = Field(
        10, gt=0, le=60, description="How often beat sends for the reconciler."
    )
    message_seconds: float = Field(
        30, gt=0, description="Seconds after which a message that no queue holds counts as lost."
    )
    # A worker keeps the message of a shorter delay, unacknowledged; the broker gives out again
    # what is not acknowledged ten minutes after the time limit.
    park_after: float = Field(
        60, ge=0, le=600, description="A retry that is due later, in seconds, waits in the ledger."
    )
    retry_unknown: bool = Field(
        False, description="Whether errors that nobody has classified are tried again."
    )
    prefetch: int = Field(
        1, ge=1, le=100, description="Messages that a worker takes in reserve for each process."
    )
    soft_time_limit: float = Field(
        3600, gt=0, description="Seconds after which an attempt is interrupted, where not said."
    )
    time_limit: float = Field(
        3660, gt=0, description="Seconds after which it is killed; no asset may have more."
    )
    stop_seconds: float = Field(
        20, ge=0, description="Seconds that steps have to end when their worker is to stop."
    )
    retention: Annotated[Retention, NoDecode] = Field(
        Retention(), description="After how many days `flowstone prune` deletes what, as JSON."
    )
    release: str | None = Field(
        None, description="What runs here, such as a git commit or an image; kept with attempts."
    )
    resources: dict[str, dict[str, Any]] = Field(
        default_factory=dict,
        repr=False,
        description="Configs of resources, by name: tables of flowstone.toml, or JSON.",
    )
    secret: SecretStr | None = Field(
        None,
        description="Signs links and tokens, and is told to nobody; several, the newest first, "
        "separated by commas.",
    )
    shared_secret: SecretStr | None = Field(
        None,
        description="Signs what goes to and comes from others over HTTP: notifications and "
        "signals; several, the newest first, separated by commas.",
    )
    roles: Mapping[str, tuple[str, ...]] = Field(
        {}, description="Who has which role, for approvals: names by role, as JSON."
    )
    notify: Mapping[str, SecretStr] = Field(
        {}, description="Who is told of approvals: addresses by name, as JSON."
    )
    web_url: str | None = Field(
        None, description="Where people reach `flowstone serve`, for the links that they are sent."
    )
    flower_port: int = Field(5555, ge=1, le=65535, description="Where `flowstone dev` puts Flower.")

    @field_validator("assets", "queues", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value

    @field_validator("retention", mode="before")
    @classmethod
    def _read(cls, value: object) -> object:
        if isinstance(value, str):
            try:
                return json.loads(value)
            except ValueError:
                raise ValueError('it is no JSON; write days, such as {"runs": 90}') from None
        return value

    @field_validator("queues")
    @classmethod
    def _own(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if not NAME.fullmatch(name):
                raise ValueError(
                    f"{name!r} cannot be the name of a queue; use letters, digits, '_', '.' and '-'"
                )
            if name in QUEUES or value.count(name) > 1:
                raise ValueError(f"the queue {name!r} is there already; name only your own, once")
        return value

    @model_validator(mode="after")
    def _ordered(self) -> Settings:
        if self.time_limit < self.soft_time_limit:
            raise ValueError("FLOWSTONE_TIME_LIMIT must not be below FLOWSTONE_SOFT_TIME_LIMIT")
        return self

    @field_validator("io")
    @classmethod
    def _named(cls, value: Mapping[str, str]) -> Mapping[str, str]:
        for name, address in value.items():
            if not NAME.fullmatch(name) or name == DEFAULT_IO:
                raise ValueError(
                    f"{name!r} cannot be the name of an IO manager; use letters, digits, '_', '.' "
                    f"and '-', and FLOWSTONE_OUTPUT_URL for {DEFAULT_IO!r}"
                )
            if not address:
                raise ValueError(f"{name!r} has no address; give it a folder or an fsspec URL")
            _refuse_password(address)
        return value

    @field_validator("secret", "shared_secret")
    @classmethod
    def _hard_to_guess(cls, value: SecretStr | None) -> SecretStr | None:
        for secret in () if value is None else value.get_secret_value().split(","):
            if len(secret.strip()) < MIN_SECRET:
                raise ValueError(
                    f"each secret has at least {MIN_SECRET} characters; make one with "
                    "`python -c 'import secrets; print(secrets.token_urlsafe(32))'`"
                )
        return value

    @field_validator("roles", "notify")
    @classmethod
    def _with_names(cls, value: Mapping[str, Any]) -> Mapping[str, Any]:
        for name in value:
            if not NAME.fullmatch(name):
                raise ValueError(f"{name!r} is not a name; use letters, digits, '_', '.' and '-'")
        return value

    @field_validator("web_url")
    @classmethod
    def _is_address(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"https?://[^\s@?#]+", value):
            raise ValueError("it is no address; write it as https://flowstone.example.com")
        return value and value.rstrip("/")

    @model_validator(mode="after")
    def _not_shared(self) -> Settings:
        if set(_parted(self.secret)) & set(_parted(self.shared_secret)):
            raise ValueError(
                "FLOWSTONE_SECRET and FLOWSTONE_SHARED_SECRET hold the same secret; whoever has "
                "the second one could make links by it, so make another one"
            )
        return self

    @field_validator("pools")
    @classmethod
    def _with_slots(cls, value: Mapping[str, int]) -> Mapping[str, int]:
        for name, slots in value.items():
            if not NAME.fullmatch(name):
                raise ValueError(
                    f"{name!r} cannot be the name of a pool; use letters, digits, '_', '.' and '-'"
                )
            if slots < 0:
                raise ValueError(f"pool {name!r} has {slots} slots; give it 0 or more")
        return value

    @model_validator(mode="after")
    def _apart(self) -> Settings:
        known = {DEFAULT_IO: self.output_url or str(self.home / "outputs"), **self.io}
        places = [(name, _place(address)) for name, address in known.items()]
        for (one, here), (other, there) in itertools.combinations(places, 2):
            if here == there or here.startswith(f"{there}/") or there.startswith(f"{here}/"):
                raise ValueError(
                    f"the IO managers {one!r} and {other!r} keep their values at one place, or "
                    "one within the other; give each a place of its own"
                )
        return self

    @field_validator("output_url")
    @classmethod
    def _without_password(cls, value: str | None) -> str | None:
        _refuse_password(value or "")
        return value

    @field_validator("home")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        return value.expanduser().absolute()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - the signature is pydantic's
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - the signature is pydantic's
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - the same
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Read arguments, then the environment, then flowstone.toml."""
        return init_settings, _Environment(settings_cls), TomlConfigSettingsSource(settings_cls)

    @cached_property
    def database(self) -> str:
        """The SQLAlchemy URL of the ledger."""
        if self.database_url is None:
            return postgres_url(self.home)
        scheme, found, rest = self.database_url.get_secret_value().partition("://")
        if scheme not in ("postgresql", "postgres", "postgresql+psycopg"):
            # Without a scheme the text begins with a password, perhaps.
            said = f"starts with {scheme}://" if found else "has no scheme"
            raise BadConfig(
                f"FLOWSTONE_DATABASE_URL {said}; the ledger needs PostgreSQL: "
                "postgresql://user:password@host:port/name"
            )
        return f"postgresql+psycopg://{rest}"

    @cached_property
    def broker(self) -> str:
        """The Celery broker's URL."""
        if self.broker_url is None:
            return valkey_url(self.home, 0)
        return readable(self.broker_url.get_secret_value(), NO_BROKER)

    @cached_property
    def results(self) -> str:
        """The URL of Celery's result backend."""
        if self.result_url is not None:
            return readable(self.result_url.get_secret_value(), NO_RESULTS)
        if self.broker_url is None:
            return valkey_url(self.home, 1)
        if self.broker.startswith(REDIS):
            return self.broker
        raise BadConfig(
            "FLOWSTONE_BROKER_URL is set, and FLOWSTONE_RESULT_URL is not; set it to a result "
            "backend, such as redis://host:port/1"
        )

    @property
    def counts_chords(self) -> bool:
        """Whether the result backend counts the header of a chord as its parts end.

        For any other, Celery looks once a second for the results of all, until these are there:
        for ever where one is ignored, as those of steps are.
        """
        return self.results.startswith(REDIS)

    @cached_property
    def secrets(self) -> tuple[bytes, ...]:
        """The secrets of links and tokens, the newest first: that one signs, any is believed."""
        return _parted(self.secret)

    @cached_property
    def shared_secrets(self) -> tuple[bytes, ...]:
        """The secrets that others have, too, for requests to them and from them."""
        return _parted(self.shared_secret)

    @cached_property
    def outputs(self) -> str:
        """The folder or URL below which outputs are stored."""
        return self.output_url or str(self.home / "outputs")

    @cached_property
    def addresses(self) -> Mapping[str, str]:
        """Where each IO manager keeps outputs, by its name."""
        return {DEFAULT_IO: self.outputs, **self.io}


def _parted(given: SecretStr | None) -> tuple[bytes, ...]:
    parts = "" if given is None else given.get_secret_value()
    return tuple(secret.strip().encode() for secret in parts.split(",") if secret.strip())


def _place(address: str) -> str:
    """Return an address so that those of one place are equal."""
    local = address.removeprefix("file://") if address.startswith("file://") else address
    if "://" in local or local == "postgresql:":
        return local.rstrip("/")
    return str(Path(local).expanduser().absolute())


def _refuse_password(address: str) -> None:
    if re.search(r"://[^/@]*:[^@]*@", address):
        # An address is shown to people, and stands in messages of errors.
        raise ValueError(
            "an address of outputs holds no password; the library of the storage takes it from "
            "the environment, such as AWS_SECRET_ACCESS_KEY"
        )


_JSON = {
    "io": '{"lake": "s3://bucket/folder"}',
    "notify": '{"team": "https://chat.example.com/hook"}',
    "pools": '{"warehouse": 4}',
    "resources": '{"name": {"field": "value"}}',
    "roles": '{"finance": ["ann", "bob"]}',
}
"""The settings that are JSON in the environment, and what that looks like."""


def load_settings(**values: Any) -> Settings:  # noqa: ANN401 - pydantic checks them
    """Return the settings of this process; raise BadConfig that names the bad one."""
    _refuse_unknown()
    if "resources" in values:
        values["resources"] = without_none(values["resources"])
    try:
        return Settings(**values)
    except ValidationError as error:
        first = error.errors()[0]
        raise BadConfig(f"{_where(first['loc'])}: {first['msg']}") from None
    except SettingsError as error:
        # Of the error nothing is quoted but the name of the field: a value may be a secret.
        name, form = next((n, f) for n, f in _JSON.items() if f'"{n}"' in str(error))
        raise BadConfig(f"{PREFIX}{name.upper()} is not JSON; it must be such as {form}") from None
    except ValueError as error:
        raise BadConfig(f"{FILE}: {error}") from None


def _where(place: tuple[int | str, ...]) -> str:
    """Return what a person has to change: the variable, or the key in the file."""
    if not place:
        return "the settings"
    key = ".".join(str(part) for part in place)
    variable = PREFIX + str(place[0]).upper()
    if variable in os.environ:
        return f"{variable}, key {place[-1]!r}" if len(place) > 1 else variable
    near = "" if place[0] in Settings.model_fields else did_you_mean(key, Settings.model_fields)
    return f"{FILE}, key {key!r}{near}"


def _refuse_unknown() -> None:
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    for name in os.environ:
        if name.startswith(PREFIX) and name not in known:
            raise BadConfig(f"{name} is not a setting of FlowStone{did_you_mean(name, known)}")
