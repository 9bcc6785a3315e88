"""The definitions of this process: which modules hold assets, and what they define."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType

from flowstone.asset import DEFINED, Asset
from flowstone.check import Check
from flowstone.errors import (
    DefinitionError,
    DuplicateAsset,
    FlowStoneError,
    UnknownAsset,
    did_you_mean,
)
from flowstone.graph import AssetGraph
from flowstone.resource import Resource


@dataclass(frozen=True)
class Registry:
    """The asset graph and the resources; the only way from a name to code."""

    graph: AssetGraph
    resources: Mapping[str, Resource]
    checks: Mapping[str, Sequence[Check]] = field(default_factory=dict)
    """The checks of each asset that has any, by its name."""


def load_registry(modules: Iterable[str]) -> Registry:
    """Import the modules and return what they define.

    That is what is defined in them, in the modules below them, and what they import:
    an asset, or a module that defines some. Without modules it is whatever this
    process has defined so far. Raises DefinitionError for a module that cannot be
    imported, and what `AssetGraph.build` raises.
    """
    names = list(modules)
    loaded = [_import(name) for name in names]
    imported = [value for module in loaded for value in vars(module).values()]
    by_name = {id(value) for value in imported}
    by_module = {value.__name__ for value in imported if isinstance(value, ModuleType)}
    found = [
        made
        for made in DEFINED
        for module in [made.function.__module__]
        if not names or id(made) in by_name or module in by_module or _lies_in(module, names)
    ]
    return build_registry(
        [made for made in found if isinstance(made, Asset)],
        [made for made in found if isinstance(made, Resource)],
        [made for made in found if isinstance(made, Check)],
    )


def _lies_in(module: str, names: list[str]) -> bool:
    return any(module == name or module.startswith(f"{name}.") for name in names)


def build_registry(
    assets: Iterable[Asset], resources: Iterable[Resource] = (), checks: Iterable[Check] = ()
) -> Registry:
    """Return the registry of exactly these definitions."""
    by_name = _by_name(resources)
    graph = AssetGraph.build(assets, by_name)
    return Registry(graph, by_name, _by_asset(checks, graph))


def _by_asset(checks: Iterable[Check], graph: AssetGraph) -> dict[str, list[Check]]:
    by_asset: dict[str, list[Check]] = {}
    for check in checks:
        if check.asset not in graph.assets:
            raise UnknownAsset(
                f"asset {check.asset!r} is not defined{did_you_mean(check.asset, graph.assets)} "
                f"(checked by {check.name!r}, {check.location})"
            )
        others = by_asset.setdefault(check.asset, [])
        for other in others:
            if other.name == check.name and other is not check:
                raise DuplicateAsset(
                    f"check {check.name!r} of {check.asset!r} is defined twice: "
                    f"{other.location} and {check.location}"
                )
        others.append(check)
    return by_asset


def _by_name(resources: Iterable[Resource]) -> dict[str, Resource]:
    by_name: dict[str, Resource] = {}
    for resource in resources:
        other = by_name.setdefault(resource.name, resource)
        if other is not resource:
            raise DuplicateAsset(
                f"resource {resource.name!r} is defined twice: "
                f"{other.location} and {resource.location}"
            )
    return by_name


def _import(name: str) -> ModuleType:
    if "" not in sys.path:
        # The console script does not look into the current folder by itself, `python -m` does.
        sys.path.insert(0, "")
    try:
        return importlib.import_module(name)
    except FlowStoneError:
        raise
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(f"{error.name}.")):
            raise DefinitionError(
                f"module {name!r} of FLOWSTONE_ASSETS was not found; give the dotted path of a "
                "module that can be imported from here, such as examples.flights.assets"
            ) from error
        raise _broken(name, error) from error
    except (Exception, SystemExit) as error:
        raise _broken(name, error) from error


def _broken(name: str, error: BaseException) -> DefinitionError:
    return DefinitionError(
        f"module {name!r} of FLOWSTONE_ASSETS could not be imported: "
        f"{type(error).__name__}: {error}",
        original=error,
    )
