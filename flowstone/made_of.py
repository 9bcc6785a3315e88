"""What a step is made of: the config of its asset in the run, and the fingerprint of all."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from pydantic import ValidationError

from flowstone.asset import Asset
from flowstone.config_fields import plain_secrets
from flowstone.config_values import config_values
from flowstone.errors import BadConfig, PlainSecret, did_you_mean, is_time_limit
from flowstone.freshness import Fingerprint, Input, fingerprint
from flowstone.masking import MASK


def asset_config(asset: Asset, config: Mapping[str, Any]) -> Any:  # noqa: ANN401 - the user's model
    """Return the config of an asset in a run, or None if it declares none; raise BadConfig."""
    given = config.get(asset.name)
    if asset.config is None:
        if given is not None:
            raise BadConfig(f"asset {asset.name!r} takes no config; remove it from the request")
        return None
    try:
        return asset.config(**(given or {}))
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise BadConfig(f"config of asset {asset.name!r}: {where}: {first['msg']}") from None
    except Exception as error:
        if is_time_limit(error):
            raise
        # A validator may raise anything, a secret in its message too, and the run has to end.
        raise BadConfig(
            f"config of asset {asset.name!r}: a validator raised {type(error).__name__}"
        ) from error


def check_names(config: Mapping[str, Any], computed: Collection[str]) -> None:
    """Raise BadConfig for a config of an asset that the run does not compute."""
    for name in config:
        if name not in computed:
            raise BadConfig(
                f"config is given for {name!r}, which this run does not compute"
                + did_you_mean(name, computed)
            )


def refuse_secrets(assets: Mapping[str, Asset], config: Mapping[str, Any]) -> None:
    """Raise PlainSecret where a run gives the config of an asset a secret: runs are stored."""
    for name in config:
        for where, _ in _secrets(assets, config, name):
            raise PlainSecret(
                f"config of asset {name!r}: {where} is a secret, and runs are stored; let the "
                "asset require a resource, whose config can name an environment variable instead"
            )


def without_secrets(assets: Mapping[str, Asset], config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config of a run with a mask in the place of each secret."""
    return {
        name: _masked(given, {secret for _, secret in _secrets(assets, config, name)})
        for name, given in config.items()
    }


def _secrets(
    assets: Mapping[str, Asset], config: Mapping[str, Any], name: str
) -> Iterator[tuple[str, str]]:
    model = assets[name].config if name in assets else None
    return iter(()) if model is None else plain_secrets(model, config[name], "")


def _masked(value: Any, secrets: set[str]) -> Any:  # noqa: ANN401 - any JSON value
    if isinstance(value, Mapping):
        return {key: _masked(one, secrets) for key, one in value.items()}
    if isinstance(value, list):
        return [_masked(one, secrets) for one in value]
    return MASK if str(value) in secrets else value


def made_of(
    asset: Asset,
    config: Any,  # noqa: ANN401 - the user's model
    inputs: Iterable[Input],
    overrides: Mapping[str, Mapping[str, Any]],
) -> Fingerprint:
    """Return the fingerprint of what a step makes.

    `config` is what `asset_config` returns, `overrides` what the run says of resources.
    """
    return fingerprint(asset.code_hash, chosen_values(asset, config, overrides), inputs)


def chosen_values(asset: Asset, config: Any, overrides: Mapping[str, Mapping[str, Any]]) -> Any:  # noqa: ANN401
    """Return what a run chooses for an asset, to be hashed: its config, and its resources'.

    The settings of resources do not count, for they are those of an environment.
    """
    values = config_values(config)
    given = {name: overrides[name] for name in asset.requires if overrides.get(name)}
    # Without an override it is the config alone, as in outputs of older versions.
    return [values, given] if given else values
