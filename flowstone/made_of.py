"""What a step is made of: the config of its asset in the run, and the fingerprint of all."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import ValidationError

from flowstone.asset import Asset
from flowstone.config_values import config_values
from flowstone.errors import BadConfig, is_time_limit
from flowstone.freshness import Fingerprint, Input, fingerprint


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
