"""The config of a resource: layers that are merged, and references that stand for secrets.

The layers are the defaults of the model, the settings of the environment, and the override of
the run. What is None in a layer is not given there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from flowstone.config_fields import inputs, is_root, plain_secrets, secrets_in
from flowstone.errors import (
    BadConfig,
    ResourceUnavailable,
    UnknownResource,
    did_you_mean,
    is_time_limit,
)
from flowstone.masking import Secrets
from flowstone.resource import Resource, is_reference

Values = Mapping[str, Any]
Layer = Literal["settings", "run"]

_SAID: Final[Mapping[Layer, str]] = {
    "settings": "in the settings (flowstone.toml or FLOWSTONE_RESOURCES)",
    "run": "as given for the run",
}


def without_none(values: Values) -> dict[str, Any]:
    """Return a mapping without what is None in it, at any depth."""
    return {
        key: without_none(value) if isinstance(value, Mapping) else value
        for key, value in values.items()
        if value is not None
    }


def merge(*layers: Values) -> dict[str, Any]:
    """Return what the layers give together: the later wins, and mappings are merged."""
    merged: dict[str, Any] = {}
    for layer in layers:
        for key, value in without_none(layer).items():
            before = merged.get(key)
            if isinstance(before, Mapping) and isinstance(value, Mapping):
                apart = is_reference(before) or is_reference(value)
                merged[key] = value if apart else merge(before, value)
            else:
                merged[key] = value
    return merged


def effective(
    resource: Resource,
    settings: Values,
    override: Values,
    environ: Mapping[str, str],
    secrets: Secrets,
) -> Any:  # noqa: ANN401 - the user's model
    """Return the config that a resource is made with, or None if it takes none.

    References are looked up in `environ`. `secrets` learns of each secret before anything
    could raise an error that holds it. Raises ResourceUnavailable for a variable that is
    missing, and BadConfig where the values do not fit.
    """
    if resource.config is None:
        for layer, values in _layers(settings, override):
            _refuse_any(resource, layer, values)
        return None
    given = merge(settings, override)
    given = merge(_defaults_below(resource.config, given), given)
    values = _resolved(given, resource.name, environ, secrets)
    for _, secret in plain_secrets(resource.config, values, ""):
        secrets.add(secret)
    try:
        config = resource.config(**values)
    except ValidationError as error:
        wrong = _told(_errors(error)[0])
    except Exception as error:  # a validator may raise anything, a secret in it
        if is_time_limit(error):
            raise
        wrong = f"a validator raised {type(error).__name__}"
    else:
        for secret in secrets_in(config):
            secrets.add(secret)
        return config
    raise BadConfig(f"config of resource {resource.name!r}: {secrets.mask(wrong)}")


def check_settings(resources: Mapping[str, Resource], settings: Mapping[str, Values]) -> None:
    """Raise BadConfig for what the settings say of a resource that is not so."""
    for name, values in settings.items():
        if name not in resources:
            raise BadConfig(
                f"resource {name!r}, {_SAID['settings']}, is not defined"
                + did_you_mean(name, resources)
            )
        _check(resources[name], "settings", values, merge(values))


def check_overrides(
    resources: Mapping[str, Resource],
    settings: Mapping[str, Values],
    overrides: Mapping[str, Values],
) -> None:
    """Raise UnknownResource or BadConfig for what a run cannot say, without quoting a value."""
    for name, values in overrides.items():
        if name not in resources:
            raise UnknownResource(
                f"resource {name!r}, {_SAID['run']}, is not defined"
                + did_you_mean(name, resources)
                + "; FLOWSTONE_ASSETS must name the module that defines it here, too"
            )
        _refuse_secrets(resources[name], values)
        _check(resources[name], "run", values, merge(settings.get(name, {}), values))


def _layers(settings: Values, override: Values) -> tuple[tuple[Layer, Values], ...]:
    return ("settings", settings), ("run", override)


def _refuse_any(resource: Resource, layer: Layer, values: Values) -> None:
    for name in values:
        raise BadConfig(
            f"resource {resource.name!r}, {_SAID[layer]}, takes no config, so it has no "
            f"field {name!r}"
        )


def _check(resource: Resource, layer: Layer, values: Values, merged: Values) -> None:
    if resource.config is None:
        _refuse_any(resource, layer, values)
        return
    fields = inputs(resource.config)
    if resource.config.model_config.get("extra") != "allow":
        for key in values:
            if key not in fields:
                raise BadConfig(
                    f"resource {resource.name!r}, {_SAID[layer]}, has no field {key!r}"
                    + did_you_mean(key, fields)
                )
    if (wrong := _misfit(resource.config, fields, values, merged)) is not None:
        hidden = Secrets()
        for _, secret in plain_secrets(resource.config, merged, ""):
            hidden.add(secret)
        raise BadConfig(f"resource {resource.name!r}, {_SAID[layer]}: {hidden.mask(wrong)}")


def _misfit(
    model: type[Any], fields: Mapping[str, FieldInfo], layer: Values, merged: Values
) -> str | None:
    """Return what does not fit in a layer, as far as it can be told without any reference."""
    plain = {key: value for key, value in merged.items() if not _refers(value)}
    whole = len(plain) == len(merged)
    given = {id(fields.get(key)) for key in layer if key in plain}
    try:
        model(**plain)
    except ValidationError as error:
        for one in _errors(error):
            # pydantic names a field by its alias, whichever key it was given under.
            if id(fields.get(str(one["loc"][0]))) in given if one["loc"] else whole:
                return _told(one)
    except Exception as error:  # noqa: BLE001 - a validator may raise anything, a secret in it
        # It may have been at a loss without the value that a reference stands for.
        return f"a validator raised {type(error).__name__}" if whole else None
    return None


def _refers(value: object) -> bool:
    if isinstance(value, Mapping):
        return is_reference(value) or any(map(_refers, value.values()))
    return isinstance(value, list) and any(map(_refers, value))


def _errors(error: ValidationError) -> list[Any]:
    return list(error.errors(include_input=False, include_url=False, include_context=False))


def _told(error: Any) -> str:  # noqa: ANN401 - a dict that pydantic does not export
    where = ".".join(str(part) for part in error["loc"])
    return f"{where}: {error['msg']}" if where else str(error["msg"])


def _defaults_below(model: type[BaseModel], given: Values) -> dict[str, Any]:
    """Return the defaults that are models, as values, where a part of them is given.

    Else pydantic would make the model of the given part alone, and forget the default.
    """
    below = {}
    for key, field in inputs(model).items():
        if isinstance(given.get(key), Mapping) and not is_reference(given[key]):
            default = field.default
            if field.default_factory and not field.default_factory_takes_validated_data:
                default = field.get_default(call_default_factory=True)
            if isinstance(default, BaseModel):
                below[key] = _as_given(default)
    return below


def _as_given(value: Any) -> Any:  # noqa: ANN401 - any value of a model
    if not isinstance(value, BaseModel) or is_root(type(value)):
        return value
    names = {id(field): name for name, field in type(value).model_fields.items()}
    keys = {names[id(field)]: key for key, field in inputs(type(value)).items()}
    return {keys[name]: _as_given(getattr(value, name)) for name in keys}


def _resolved(value: Any, name: str, environ: Mapping[str, str], secrets: Secrets) -> Any:  # noqa: ANN401 - any JSON value
    if is_reference(value):
        if value["env"] not in environ:
            raise ResourceUnavailable(
                f"resource {name!r} could not be started: its config refers to the environment "
                f"variable {value['env']}, which is not set for this process"
            )
        found = environ[value["env"]]
        secrets.add(found)
        return found
    if isinstance(value, Mapping):
        return {key: _resolved(one, name, environ, secrets) for key, one in value.items()}
    if isinstance(value, list):
        return [_resolved(one, name, environ, secrets) for one in value]
    return value


def _refuse_secrets(resource: Resource, values: Values) -> None:
    if resource.config is None:
        return
    for where, _ in plain_secrets(resource.config, values, ""):
        raise BadConfig(
            f"resource {resource.name!r}, {_SAID['run']}: {where} is a secret, and runs are "
            'stored; name an environment variable that holds it: {"env": "NAME"}, or env:NAME on '
            "the command line"
        )
