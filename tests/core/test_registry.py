"""The registry: from the names of modules to checked definitions."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from flowstone import registry
from flowstone.asset import Definitions
from flowstone.errors import (
    DefinitionError,
    DuplicateAsset,
    UnknownAsset,
)
from flowstone.registry import build_registry, load_registry
from flowstone.resource import resource

Write = Callable[[str, str], str]


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Writes importable modules, in a process that has defined nothing yet."""
    defined = Definitions()
    # The name flowstone.asset is the decorator, which hides the module of that name.
    monkeypatch.setattr(sys.modules["flowstone.asset"], "DEFINED", defined)
    monkeypatch.setattr(registry, "DEFINED", defined)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    written: list[str] = []

    def write(name: str, text: str) -> str:
        (tmp_path / f"{name}.py").write_text(f"from flowstone.asset import asset\n{text}\n")
        importlib.invalidate_caches()
        written.append(name)
        return name

    yield write
    for name in written:
        sys.modules.pop(name, None)


def test_modules_define_their_assets_and_those_of_what_they_import(module: Write) -> None:
    module("their_raw", "@asset\ndef raw(): ...")
    module("their_clean", "import their_raw\n@asset\ndef clean(raw): ...")
    assert load_registry(["their_clean"]).graph.order == ("raw", "clean")


def test_what_a_module_imports_by_name_is_its_own_and_what_lies_elsewhere_is_not(
    module: Write,
) -> None:
    module("their_raw", "@asset\ndef raw(): ...\n@asset\ndef other(): ...")
    module("their_clean", "from their_raw import raw\n@asset\ndef clean(raw): ...")
    assert load_registry(["their_clean"]).graph.order == ("raw", "clean")
    assert set(load_registry([]).graph.assets) == {"raw", "other", "clean"}


def test_a_name_that_a_loop_defines_twice_is_refused(module: Write) -> None:
    text = """
def make():
    @asset
    def same(): ...
for _ in range(2):
    make()
"""
    with pytest.raises(DuplicateAsset, match="'same' is defined twice"):
        load_registry([module("looped", text)])


def test_a_module_that_does_not_exist_is_named_with_the_remedy(module: Write) -> None:
    with pytest.raises(
        DefinitionError, match=r"'no_such_module' of FLOWSTONE_ASSETS was not found"
    ):
        load_registry(["no_such_module"])
    with pytest.raises(
        DefinitionError, match=r"'no_such.module' of FLOWSTONE_ASSETS was not found"
    ):
        load_registry(["no_such.module"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("import no_such_package", "ModuleNotFoundError: No module named 'no_such_package'"),
        ("def (", "SyntaxError"),
    ],
)
def test_a_module_that_breaks_at_import_says_how(module: Write, text: str, message: str) -> None:
    name = module("broken_assets", text)
    with pytest.raises(DefinitionError, match=message) as caught:
        load_registry([name])
    assert "'broken_assets' of FLOWSTONE_ASSETS could not be imported" in caught.value.message
    assert caught.value.original is not None


def test_a_definition_that_is_refused_keeps_its_own_error(module: Write) -> None:
    name = module("bad_assets", "@asset\ndef made(*args): ...")
    with pytest.raises(DefinitionError, match=r"takes \*args"):
        load_registry([name])


def test_two_definitions_of_one_name_in_a_module_do_not_silently_replace_each_other(
    module: Write,
) -> None:
    name = module("twice", "@asset\ndef same(): ...\n@asset\ndef same(): ...")
    with pytest.raises(DuplicateAsset, match=r"twice\.py:2 and .*twice\.py:4"):
        load_registry([name])


def test_two_definitions_of_one_name_in_two_modules_are_refused(module: Write) -> None:
    names = [module("one", "@asset\ndef same(): ..."), module("two", "@asset\ndef same(): ...")]
    with pytest.raises(DuplicateAsset, match=r"one\.py:2 and .*two\.py:2"):
        load_registry(names)


def test_a_module_that_is_loaded_again_defines_nothing_twice(module: Write) -> None:
    name = module("reloaded", "@asset\ndef same(): ...")
    first = load_registry([name]).graph["same"]
    importlib.reload(sys.modules[name])
    again = load_registry([name]).graph["same"]
    assert again is not first
    assert again.function is sys.modules[name].same.function


def test_faults_across_modules_are_found(module: Write) -> None:
    with pytest.raises(UnknownAsset, match="read by 'clean'"):
        load_registry([module("lonely", "@asset\ndef clean(raw): ...")])


def test_two_resources_of_one_name_are_refused() -> None:
    @resource
    def client() -> None: ...

    first = client

    @resource  # type: ignore[no-redef]
    def client() -> None: ...

    with pytest.raises(DuplicateAsset, match="resource 'client' is defined twice"):
        build_registry([], [first, client])
