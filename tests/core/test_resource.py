"""Declaring resources, their config in layers, and what of it is refused."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import pytest
from pydantic import (
    AliasChoices,
    BaseModel,
    ConfigDict,
    Field,
    RootModel,
    Secret,
    SecretBytes,
    SecretStr,
    field_validator,
    model_validator,
)

from flowstone.asset import Asset, Dep, asset
from flowstone.errors import (
    BadConfig,
    BadSignature,
    DefinitionError,
    ResourceUnavailable,
    StepTimeout,
    UnknownResource,
)
from flowstone.masking import Secrets
from flowstone.registry import build_registry
from flowstone.resource import Env, Resource, resource
from flowstone.resource_config import check_overrides, check_settings, effective, merge


class Inner(BaseModel):
    size: int = 5
    timeout: float = 1
    key: SecretStr | None = None


class Config(BaseModel):
    url: str = "sqlite://"
    port: int = 5432
    password: SecretStr | None = None
    pool: Inner = Inner(size=9)


def made(config: type[Any] | None = Config) -> Resource:
    if config is None:

        @resource
        def plain() -> None: ...

        return plain

    @resource(config=config)
    def db(config: Any) -> Any:
        return config

    return db


def config_of(
    settings: Mapping[str, Any] | None = None,
    override: Mapping[str, Any] | None = None,
    model: type[Any] = Config,
    **environ: str,
) -> Any:
    return effective(made(model), settings or {}, override or {}, environ, Secrets())


async def coroutine() -> None: ...
async def async_generator() -> AsyncIterator[int]:
    yield 1


def one_parameter(db: int) -> None: ...
def no_parameter() -> None: ...
def two_parameters(config: int, more: int) -> None: ...
def context() -> None: ...


@pytest.mark.parametrize(
    ("function", "config", "message"),
    [
        (coroutine, None, "must be a plain function or a generator function, not async"),
        (async_generator, None, "not async"),
        (one_parameter, None, "'one_parameter' .* must take no parameters"),
        (no_parameter, Config, "must take one parameter, 'config'"),
        (one_parameter, Config, "must take one parameter, 'config'"),
        (two_parameters, Config, "must take one parameter, 'config'"),
        (no_parameter, dict, "config= takes a pydantic model"),
        (context, None, "has the name of the parameter that receives the Context"),
        (lambda: 1, None, "'<lambda>' is not a name"),
    ],
)
def test_a_function_that_makes_no_resource_is_refused(
    function: Callable[..., Any], config: Any, message: str
) -> None:
    with pytest.raises((BadSignature, DefinitionError), match=message):
        resource(config=config)(function)


def test_a_resource_can_be_called_like_the_function_it_was() -> None:
    assert made()(config=Config(port=1)).port == 1
    assert made().location.startswith(__file__)


def test_a_later_layer_wins_and_mappings_are_merged() -> None:
    settings = {"url": "a", "port": 1, "pool": {"size": 2}}
    config = config_of(settings, {"url": "b", "pool": {"timeout": 3}})
    assert (config.url, config.port) == ("b", 1)
    assert (config.pool.size, config.pool.timeout) == (2, 3)
    # What is not given of the default is the default's, and not that of its model.
    assert config_of({"pool": {"timeout": 3}}).pool.size == 9
    assert merge({"a": [1, 2]}, {"a": [3]}, {"b": 1}) == {"a": [3], "b": 1}
    assert merge({"a": {"x": 1}}, {"a": {"env": "A"}}) == {"a": {"env": "A"}}
    assert merge({"a": {"env": "A"}}, {"a": {"x": 1}}) == {"a": {"x": 1}}


def test_references_are_looked_up_anywhere_in_the_config() -> None:
    class Many(BaseModel):
        urls: list[str]
        pool: Inner
        port: int

    given = {"urls": ["a", Env("URL")], "pool": {"key": Env("KEY")}, "port": {"env": "PORT"}}
    config = config_of(given, model=Many, URL="b", KEY="k", PORT="7")
    assert (config.urls, config.pool.key.get_secret_value(), config.port) == (["a", "b"], "k", 7)


def test_a_variable_that_is_missing_is_named_with_the_resource() -> None:
    with pytest.raises(ResourceUnavailable, match=r"'db' could not be .* variable NO_SUCH, which"):
        config_of(override={"password": Env("NO_SUCH")})


@pytest.mark.parametrize("name", ["", "A=B", "A B", "A\0", None])
def test_a_reference_names_a_variable(name: Any) -> None:
    with pytest.raises(DefinitionError, match="not the name of an environment variable"):
        Env(name)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"prot": 1}, "has no field 'prot'; did you mean 'port'"),
        ({"port": "x"}, "port: Input should be a valid integer"),
        ({"port": "x", "url": {"env": "URL"}}, "port: Input should be a valid integer"),
        ({"pool": {"size": []}}, r"pool\.size: Input should be a valid integer"),
    ],
)
def test_what_does_not_fit_is_told_beforehand_with_its_layer(
    given: Mapping[str, Any], message: str
) -> None:
    known = {"db": made()}
    with pytest.raises(BadConfig, match=f"'db', in the settings .*{message}"):
        check_settings(known, {"db": given})
    with pytest.raises(BadConfig, match=f"'db', as given for the run.*{message}"):
        check_overrides(known, {}, {"db": given})


def test_what_a_reference_stands_for_is_not_guessed_at() -> None:
    class Strict(BaseModel):
        url: str
        port: int

        @model_validator(mode="after")
        def _both(self) -> Strict:
            if self.port == 1:
                raise ValueError("no port 1")
            return self

    known = {"db": made(Strict)}
    check_overrides(known, {}, {"db": {"port": 1, "url": Env("URL")}})
    check_overrides(known, {}, {"db": {"port": 1}})  # which the settings may complete
    with pytest.raises(BadConfig, match=r"as given for the run.*no port 1"):
        check_overrides(known, {"db": {"url": "u"}}, {"db": {"port": 1}})
    with pytest.raises(BadConfig, match=r"config of resource 'db'.*no port 1"):
        config_of({"url": "u"}, {"port": 1}, model=Strict)
    with pytest.raises(BadConfig, match=r"config of resource 'db': url: Field required"):
        config_of({"port": 2}, model=Strict)


def test_unknown_resources_and_config_for_one_that_takes_none_are_refused() -> None:
    known = {"db": made(), "plain": made(None)}
    with pytest.raises(UnknownResource, match=r"'dbs', as given for the run.*mean 'db'"):
        check_overrides(known, {}, {"dbs": {}})
    with pytest.raises(BadConfig, match=r"'dbs', in the settings .*mean 'db'"):
        check_settings(known, {"dbs": {}})
    for refused in (
        lambda: check_overrides(known, {}, {"plain": {"a": 1}}),
        lambda: check_settings(known, {"plain": {"a": 1}}),
        lambda: effective(known["plain"], {}, {"a": 1}, {}, Secrets()),
    ):
        with pytest.raises(BadConfig, match="takes no config, so it has no field 'a'"):
            refused()
    assert effective(known["plain"], {}, {}, {}, Secrets()) is None


def test_fields_are_known_by_their_aliases() -> None:
    class Aliased(BaseModel):
        model_config = ConfigDict(populate_by_name=True)
        one: int = Field(1, alias="eins")
        two: int = Field(2, validation_alias=AliasChoices("zwei", "deux"))

    class OnlyAlias(BaseModel):
        one: int = Field(1, alias="eins")

    class Open(BaseModel):
        model_config = ConfigDict(extra="allow")

    for key in ("one", "eins", "two", "zwei", "deux"):
        check_overrides({"db": made(Aliased)}, {}, {"db": {key: 5}})
        with pytest.raises(BadConfig, match="valid integer"):
            check_overrides({"db": made(Aliased)}, {}, {"db": {key: "x"}})
    with pytest.raises(BadConfig, match="no field 'one'"):
        check_overrides({"db": made(OnlyAlias)}, {}, {"db": {"one": 5}})
    check_overrides({"db": made(Open)}, {}, {"db": {"anything": 5}})


class Token(RootModel[SecretStr]): ...


@dataclass
class Login:
    user: str
    password: SecretStr


class Holding(BaseModel):
    plain: str = ""
    text: SecretStr | None = None
    data: SecretBytes = SecretBytes(b"")
    number: Secret[int] = Secret(1)
    named: Annotated[SecretStr | None, Field(min_length=1)] = None
    many: list[SecretStr] = []
    keyed: dict[str, SecretStr] = {}
    inner: Inner | None = None
    inners: list[Inner] = []
    token: Token | None = None
    login: Login | None = None


@pytest.mark.parametrize(
    ("given", "where"),
    [
        ({"text": "hunter2"}, "text"),
        ({"data": "hunter2"}, "data"),
        ({"number": 31337}, "number"),
        ({"named": "hunter2"}, "named"),
        ({"many": [{"env": "A"}, "hunter2"]}, "many.1"),
        ({"keyed": {"a": "hunter2"}}, "keyed.a"),
        ({"inner": {"key": "hunter2"}}, "inner.key"),
        ({"inners": [{"key": "hunter2"}]}, "inners.0.key"),
        ({"token": "hunter2"}, "token"),
        ({"login": {"user": "me", "password": "hunter2"}}, "login.password"),
        ({"text": {"env": "A", "or": "hunter2"}}, "text"),
        ({"text": "hunter2", "plain": 7}, "text"),
    ],
)
def test_a_run_cannot_hold_a_secret_and_the_error_does_not_quote_it(
    given: Mapping[str, Any], where: str
) -> None:
    with pytest.raises(BadConfig, match=rf": {where} is a secret, and runs are stored") as caught:
        check_overrides({"db": made(Holding)}, {}, {"db": given})
    assert "hunter2" not in caught.value.message
    assert "31337" not in caught.value.message


def test_references_and_what_is_no_secret_can_be_stored_with_a_run() -> None:
    given = {
        "plain": "a",
        "text": Env("A"),
        "many": [Env("B")],
        "keyed": {"a": Env("C")},
        "inner": {"size": 3, "key": Env("D")},
    }
    check_overrides({"db": made(Holding)}, {}, {"db": given})


def test_a_validator_that_quotes_a_secret_is_not_quoted() -> None:
    class Loud(BaseModel):
        password: SecretStr = SecretStr("")

        @field_validator("password")
        @classmethod
        def _long(cls, value: SecretStr) -> SecretStr:
            raise ValueError(f"{value.get_secret_value()} is too short")

    class Louder(BaseModel):
        password: SecretStr = SecretStr("")

        @field_validator("password")
        @classmethod
        def _long(cls, value: SecretStr) -> SecretStr:
            raise RuntimeError(f"{value.get_secret_value()} is too short")

    with pytest.raises(BadConfig, match=r"password: Value error, \*\*\* is too short"):
        config_of(override={"password": Env("PW")}, model=Loud, PW="hunter2")
    with pytest.raises(BadConfig, match=r"\*\*\* is too short"):
        config_of({"password": "hunter2"}, model=Loud)
    with pytest.raises(BadConfig, match=r"\*\*\* is too short"):
        check_settings({"db": made(Loud)}, {"db": {"password": "hunter2"}})
    with pytest.raises(BadConfig, match=r"a validator raised RuntimeError$") as caught:
        config_of(override={"password": Env("PW")}, model=Louder, PW="hunter2")
    assert caught.value.__context__ is None
    with pytest.raises(BadConfig, match="a validator raised RuntimeError"):
        check_settings({"db": made(Louder)}, {"db": {"password": "hunter2"}})


def injecting(**options: Any) -> Asset:
    @asset(**options)
    def users(db: str) -> None: ...

    return users


def test_a_parameter_named_like_a_required_resource_receives_it() -> None:
    users = injecting(requires=["db", "db"])
    assert (users.requires, users.injected, users.dependencies) == (("db",), ("db",), ())
    assert injecting().injected == ()
    assert [d.asset for d in injecting().dependencies] == ["db"]


@pytest.mark.parametrize(
    "options",
    [
        {"deps": {"db": "other"}},
        {"deps": {"db": Dep("other")}},
        {"deps": ["db"]},
    ],
)
def test_a_name_that_is_both_read_and_required_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(BadSignature, match="'db' is both an asset that it reads and a resource"):
        injecting(requires=["db"], **options)


def test_a_parameter_that_may_mean_an_asset_or_a_resource_is_refused() -> None:
    @asset(name="db")
    def table() -> None: ...

    @asset(requires=["db"])
    def by_context() -> None: ...

    with pytest.raises(DefinitionError, match=r"'db' of 'users' .*means both an asset and"):
        build_registry([table, injecting(requires=["db"])], [made()])
    build_registry([table, by_context], [made()])


def test_requires_takes_a_list() -> None:
    with pytest.raises(BadSignature, match="requires= takes a list, not a string"):
        injecting(requires="db")


@pytest.fixture
def secrets() -> Secrets:
    made = Secrets()
    made.add("p@ss/word'1")
    made.add("postgresql://me:hun%20ter2@host/db")
    return made


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("login p@ss/word'1 failed", "login *** failed"),
        (repr("p@ss/word'1\n"), '"***\\n"'),
        ("at https://me:p%40ss%2Fword%271@host", "at https://me:***@host"),
        ("cannot reach postgresql://me:hun%20ter2@host/db", "cannot reach ***"),
        ("password 'hun ter2' was refused", "password '***' was refused"),
        ("nothing here", "nothing here"),
    ],
)
def test_secrets_are_masked_however_they_are_written(
    secrets: Secrets, text: str, told: str
) -> None:
    assert secrets.mask(text) == told


def test_what_is_in_every_text_is_no_secret() -> None:
    secrets = Secrets()
    secrets.add("a")
    secrets.add("")
    assert secrets.mask("a text") == "a text"


class Mute(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


def raised(by: Callable[[], object]) -> BaseException:
    try:
        by()
    except BaseException as error:  # noqa: BLE001
        return error
    raise AssertionError


def from_cause() -> None:
    try:
        leave()
    except SystemExit as error:
        raise ConnectionError("refused") from error


def in_context() -> None:
    try:
        leave()
    except SystemExit:
        raise Mute  # noqa: B904


def leave() -> None:
    raise SystemExit("p@ss/word'1")


def interrupt() -> None:
    raise KeyboardInterrupt("p@ss/word'1")


def shown(error: BaseException) -> str:
    import traceback  # noqa: PLC0415

    return "".join(traceback.format_exception(error))


@pytest.mark.parametrize("by", [from_cause, in_context, leave, interrupt])
def test_an_error_without_secrets_says_the_rest_and_leads_to_the_same(
    secrets: Secrets, by: Callable[[], object]
) -> None:
    from flowstone.classification import error_type, is_retryable  # noqa: PLC0415

    error = raised(by)
    told = secrets.without(error)
    assert "p@ss" in shown(error)
    assert "p@ss" not in shown(told)
    assert "***" in shown(told)
    assert by.__name__ in shown(told)
    assert (error_type(told), is_retryable(told)) == (error_type(error), is_retryable(error))
    assert isinstance(told, KeyboardInterrupt) == isinstance(error, KeyboardInterrupt)


def test_an_error_without_a_secret_stays_what_it_is(secrets: Secrets) -> None:
    error = raised(lambda: 1 / 0)
    assert secrets.without(error) is error


def test_generators_are_not_called_when_declared() -> None:
    @resource
    def client() -> Iterator[str]:
        raise AssertionError
        yield "never"

    assert client.name == "client"


def test_a_timeout_that_tells_no_secret_is_still_one() -> None:
    secrets = Secrets()
    secrets.add("s3cret")
    told = secrets.without(StepTimeout("took s3cret"))
    assert isinstance(told, StepTimeout)
    assert (str(told), told.retryable) == ("took ***", True)
