"""The resources that live in a process: made when first needed, shared, and closed at its end."""

from __future__ import annotations

import atexit
import ctypes
import inspect
import itertools
import json
import os
import threading
import weakref
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

from flowstone.classification import error_text
from flowstone.context import Resources
from flowstone.errors import ResourceUnavailable, is_time_limit
from flowstone.log import get_logger
from flowstone.masking import Secrets
from flowstone.resource import Resource
from flowstone.resource_config import Values, effective, without_none

log = get_logger("flowstone.resources")

MAX_OVERRIDDEN: Final = 8
"""How many of each resource are kept that runs have given a config of their own."""

_DEFAULT: Final = "{}"
"""The text of an override that says nothing."""


@dataclass(eq=False)
class _Living:
    """A resource that has been made of a config."""

    name: str
    config: Any
    value: Any
    generator: Generator[Any, Any, Any] | None
    overrides: set[str] = field(default_factory=set)
    """The overrides, as texts, that have led to this config."""
    borrowers: set[object] = field(default_factory=set)
    used: int = 0
    """Grows with each use: who has the least has been left alone for the longest."""


class LiveResources:
    """The resources of one process, each made once for each config that it is needed with.

    Threads may share it. A process that is forked begins with none: what its parent has made
    is not used, and not closed either, for it is the parent's connection to the world.
    """

    def __init__(
        self,
        declared: Callable[[], Mapping[str, Resource]],
        settings: Mapping[str, Values],
    ) -> None:
        self.secrets = Secrets()
        """What must not be told by anyone who has used a resource."""
        self._declared = declared
        self._settings = settings
        self._clock = itertools.count()
        self._begin()
        forget = weakref.WeakMethod(self._forget)
        os.register_at_fork(after_in_child=lambda: (method := forget()) and method())

    def _begin(self) -> None:
        self._living: list[_Living] = []
        # Held for moments only; whoever makes a resource holds the lock of that.
        self._lock = threading.Lock()
        self._making: dict[str, threading.Lock] = {}

    def _forget(self) -> None:
        # The garbage collector closes a generator, which would end the parent's connection from
        # here. So it must never get at them, not even when the interpreter ends.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._living))
        self._begin()

    @contextmanager
    def lent(self, names: Sequence[str], overrides: Mapping[str, Values]) -> Iterator[Resources]:
        """Lend these resources to a step of a run with these overrides, until the block ends."""
        borrower = object()
        try:
            yield Resources(
                {n: partial(self._get, n, overrides.get(n) or {}, borrower) for n in names}
            )
        finally:
            if names:
                self._give_back(borrower)
                for name in names:
                    self._close_spare(name)

    def close(self) -> None:
        """Close all, what was made last first. An error of one does not hinder the others."""
        atexit.unregister(self.close)
        with self._lock:
            living, self._living = self._living, []
        for one in reversed(living):
            self._close(one)

    def _get(self, name: str, override: Values, borrower: object) -> Any:  # noqa: ANN401
        said = json.dumps(without_none(override), sort_keys=True)
        found = self._lend(name, said, borrower)
        if found is None:
            with self._lock:
                making = self._making.setdefault(name, threading.Lock())
            with making:
                # Another step may have made it in the meantime.
                found = self._lend(name, said, borrower) or self._make(
                    name, override, said, borrower
                )
            self._close_spare(name)
        return found.value

    def _lend(self, name: str, said: str, borrower: object) -> _Living | None:
        with self._lock:
            for one in self._living:
                if one.name == name and said in one.overrides:
                    return self._noted(one, borrower)
        return None

    def _noted(self, living: _Living, borrower: object) -> _Living:
        living.borrowers.add(borrower)
        living.used = next(self._clock)
        return living

    def _make(self, name: str, override: Values, said: str, borrower: object) -> _Living:
        resource = self._declared()[name]
        given = self._settings.get(name, {})
        config = effective(resource, given, override, os.environ, self.secrets)
        with self._lock:
            # Another override may have led to the same.
            for one in self._living:
                if one.name == name and one.config == config:
                    one.overrides.add(said)
                    return self._noted(one, borrower)
        made = self._start(resource, config)
        made.overrides.add(said)
        with self._lock:
            self._living.append(self._noted(made, borrower))
        # Here, and not before, so that a forked child does it for itself.
        atexit.unregister(self.close)
        atexit.register(self.close)
        return made

    def _start(self, resource: Resource, config: Any) -> _Living:  # noqa: ANN401 - the user's model
        try:
            made = resource.function() if resource.config is None else resource.function(config)
            if not inspect.isgenerator(made):
                return _Living(resource.name, config, made, None)
            return _Living(resource.name, config, _first(made), made)
        except Exception as error:  # whatever a user's function raises
            if is_time_limit(error):
                raise
            told = self.secrets.without(error)
        # Outside of the block, for else the error, and what it says, would be the context of this.
        raise ResourceUnavailable(
            f"resource {resource.name!r} could not be started: {error_text(told)}", original=told
        ) from told

    def _give_back(self, borrower: object) -> None:
        with self._lock:
            for one in self._living:
                if borrower in one.borrowers:
                    one.borrowers.discard(borrower)
                    one.used = next(self._clock)

    def _close_spare(self, name: str) -> None:
        """Close what is beyond the number of those that are kept, except what a step uses."""
        with self._lock:
            kept = [o for o in self._living if o.name == name and _DEFAULT not in o.overrides]
            idle = sorted((one for one in kept if not one.borrowers), key=lambda one: one.used)
            spare = idle[: max(0, len(kept) - MAX_OVERRIDDEN)]
            self._living = [one for one in self._living if one not in spare]
        for one in spare:
            self._close(one)

    def _close(self, living: _Living) -> None:
        if living.generator is None:
            return
        try:
            next(living.generator)
            living.generator.close()
        except StopIteration:
            return
        except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever it raises
            said = f"{type(error).__name__}: {error_text(self.secrets.without(error))}"
            log.warning("a resource was not closed well", resource=living.name, error=said)
            return
        log.warning("a resource yields more than once; it was closed", resource=living.name)


def _first(generator: Generator[Any, Any, Any]) -> Any:  # noqa: ANN401 - the user's own types
    for value in generator:
        return value
    raise RuntimeError("its function has yielded nothing")
