"""Pickle: by the choice of an asset, for what has no other format, and never by surprise."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import flowstone
from flowstone import asset, materialize_sync, runtime
from flowstone.asset import DEFINED
from flowstone.errors import OutputError, RunFailed
from flowstone.io import Outputs
from flowstone.io.formats import decode, encode
from flowstone.registry import build_registry
from flowstone.runtime import Runtime
from tests.conftest import RuntimeFactory
from tests.io.places import place


class Thing:
    """What no other format has."""

    def __init__(self, value: int) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Thing) and other.value == self.value

    __hash__ = None  # type: ignore[assignment]


class Trap:
    """What does something where its pickle is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_every_manager_keeps_pickles(outputs: Outputs) -> None:
    stored = outputs.store(Thing(5), place(), pickle=True)
    assert (stored.format, stored.location[-7:]) == ("pickle", ".pickle")
    assert outputs.load(stored, pickle=True) == Thing(5)


@pytest.mark.parametrize("value", [None, 1, {"a": [1]}, (1, 2), b"x", pl.DataFrame({"a": [1]})])
def test_only_what_has_no_other_format_is_pickled(value: Any) -> None:
    assert encode(value, pickle=True).format == encode(value).format != "pickle"


def test_what_cannot_be_pickled_either_is_refused() -> None:
    with pytest.raises(OutputError, match="a function cannot be pickled: "):
        encode(lambda: 1, pickle=True)


def test_a_pickle_of_a_class_that_is_gone_says_so() -> None:
    data = pickle.dumps(Thing(1)).replace(b"test_pickle", b"test_nickle")
    with pytest.raises(OutputError, match="its pickle cannot be read by this process: Module"):
        decode("pickle", data, pickle=True)


def test_a_pickle_is_not_loaded_where_that_is_not_allowed(outputs: Outputs, tmp_path: Path) -> None:
    trap = tmp_path / "sprung"
    stored = outputs.store(Trap(trap), place(), pickle=True)
    with pytest.raises(OutputError, match=r"it is a pickle, .*asset with pickle=True"):
        outputs.load(stored)
    assert not trap.exists()
    outputs.load(stored, pickle=True)
    assert trap.exists()


def test_an_asset_without_the_option_fails(make_runtime: RuntimeFactory) -> None:
    @asset
    def thing() -> Thing:
        return Thing(1)

    make_runtime(build_registry([thing]))
    with pytest.raises(RunFailed, match="or set pickle=True"):
        materialize_sync(thing)


def test_readers_get_the_value_of_an_asset_that_allows_it(make_runtime: RuntimeFactory) -> None:
    @asset(pickle=True)
    def thing() -> Thing:
        return Thing(2)

    @asset
    def double(thing: Thing) -> int:
        return 2 * thing.value

    make_runtime(build_registry([thing, double]))
    assert materialize_sync(double, upstream=True).result() == 4
    assert flowstone.get("thing") == Thing(2)


@pytest.mark.parametrize("allowed", [True, False])
def test_a_process_allows_what_its_own_definitions_do(
    make_runtime: RuntimeFactory, tmp_path: Path, allowed: bool
) -> None:
    trap = tmp_path / "sprung"

    def define(*, pickle: bool) -> Any:
        @asset(name="trap", pickle=pickle)
        def made() -> Any:
            return Trap(trap)

        return build_registry([made])

    make_runtime(define(pickle=True))
    # The asset's own checks and result read it, too, so the trap is set up by hand.
    materialize_sync("trap")
    trap.unlink(missing_ok=True)
    make_runtime(define(pickle=allowed))
    if allowed:
        flowstone.get("trap")
    else:
        with pytest.raises(OutputError, match="it is a pickle, which can run any code"):
            flowstone.get("trap")
    assert trap.exists() == allowed


def test_a_process_without_the_definition_loads_no_pickle(
    make_runtime: RuntimeFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trap = tmp_path / "sprung"

    @asset(name="unheard_of", pickle=True)
    def made() -> Any:
        return Trap(trap)

    here = make_runtime(build_registry([made]))
    materialize_sync("unheard_of")
    trap.unlink(missing_ok=True)
    elsewhere = Runtime(here.settings)
    runtime.use(elsewhere)
    monkeypatch.setattr("flowstone.runtime.DEFINED", [])
    with pytest.raises(OutputError, match="it is a pickle, which can run any code"):
        flowstone.get("unheard_of")
    assert not trap.exists()
    # It does where the module of the asset is imported.
    monkeypatch.setattr("flowstone.runtime.DEFINED", DEFINED)
    flowstone.get("unheard_of")
    assert trap.exists()
    elsewhere.close()


def test_a_pickle_that_was_changed_in_storage_is_not_loaded(
    outputs: Outputs, tmp_path: Path
) -> None:
    trap = tmp_path / "sprung"
    stored = outputs.store(Thing(1), place(), pickle=True)
    outputs.manager("default").store(stored.location, pickle.dumps(Trap(trap)))
    with pytest.raises(OutputError, match="has been changed in storage"):
        outputs.load(stored, pickle=True)
    with pytest.raises(OutputError, match="has been changed in storage"):
        outputs.load(replace(stored, format="json"))
    assert not trap.exists()
