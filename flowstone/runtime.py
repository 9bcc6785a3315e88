"""What a process works with: settings, ledger, definitions, outputs. One of each, made lazily."""

from __future__ import annotations

import getpass
import os
import socket
import sys
from functools import cached_property
from typing import Any

from flowstone import hints
from flowstone.asset import DEFINED, Asset, check_timeouts
from flowstone.errors import FlowStoneError
from flowstone.graph import check_queues
from flowstone.io import Outputs
from flowstone.leases import Leases
from flowstone.outcome import StoredOutput
from flowstone.registry import Registry, load_registry
from flowstone.resource_config import check_settings
from flowstone.resources import LiveResources
from flowstone.settings import Settings, load_settings
from flowstone.store.ledger import Ledger


class Runtime:
    """The parts of one process. `registry` may be given; else the settings name its modules."""

    def __init__(self, settings: Settings | None = None, registry: Registry | None = None) -> None:
        self.settings = settings or load_settings()
        self._registry = registry
        # Not made lazily: two threads would make two, and each resource twice.
        self.resources = LiveResources(lambda: self.registry.resources, self.settings.resources)

    @cached_property
    def ledger(self) -> Ledger:
        """The connections to PostgreSQL."""
        return Ledger(self.settings.database)

    @cached_property
    def registry(self) -> Registry:
        """The definitions.

        Raises DefinitionError where they do not make sense, name a queue that the settings do
        not, or give an asset more time than these let any have, and BadConfig where the settings
        of resources do not fit them.
        """
        registry = self._registry or load_registry(self.settings.assets)
        check_queues(registry.graph, self.settings.queues)
        check_settings(registry.resources, self.settings.resources)
        check_timeouts(registry.graph.assets.values(), self.settings.time_limit)
        return registry

    @cached_property
    def outputs(self) -> Outputs:
        """Where values are stored."""
        return Outputs(self.settings.addresses, lambda: self.ledger)

    def read(
        self,
        asset: str,
        output: StoredOutput,
        as_type: Any = None,  # noqa: ANN401
        *,
        pickle: bool = True,
    ) -> Any:  # noqa: ANN401
        """Return the value of an output of an asset, as `as_type` or as what it was.

        What it was, the function says that made it, if this process has its definition;
        nothing is imported for that. An `as_type` that says less, `list` or a base class, takes
        nothing away. A pickle is read if its asset allows that, and the caller with `pickle`.
        Raises what `Outputs.load` raises.
        """
        made_by = self._known_asset(asset)
        if made_by is not None:
            as_type = hints.nearer(as_type, hints.of_result(made_by.function))
        allowed = pickle and made_by is not None and made_by.pickle
        return self.outputs.load(output, as_type, pickle=allowed)

    def definitions(self, *, importing: bool) -> Registry | None:
        """Return the definitions, or None if this process does not have them.

        Without `importing`, modules that have not been imported yet are left alone. Definitions
        that do not make sense are as good as none: whoever needs them will say so.
        """
        if self._registry is None and "registry" not in self.__dict__:
            if not importing and not sys.modules.keys() >= set(self.settings.assets):
                return None
            if not self.settings.assets and not any(DEFINED):
                return None
        try:
            # Without modules, more may be defined later.
            return self.registry if self._registry or self.settings.assets else load_registry(())
        except FlowStoneError:
            return None

    @property
    def has_all_definitions(self) -> bool:
        """Whether `definitions`, where it returns any, returns all that there are."""
        return self._registry is not None or bool(self.settings.assets)

    def _known_asset(self, name: str) -> Asset | None:
        if self._registry is not None or "registry" in self.__dict__:
            return self.registry.graph.assets.get(name)
        defined = (made for made in DEFINED if isinstance(made, Asset))
        return next((made for made in defined if made.name == name), None)

    @cached_property
    def leases(self) -> Leases:
        """The leases of the steps that this process runs."""
        return Leases(self.ledger, self.settings.lease_seconds)

    def close(self) -> None:
        """Close what has been opened."""
        self.resources.close()
        if "leases" in self.__dict__:
            self.leases.close()
        if "ledger" in self.__dict__:
            self.ledger.close()


def whoami() -> str:
    """Return who acts, as user@host, for the audit log."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        # A container may run under a user id that has no name.
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"


_runtimes: dict[int, Runtime] = {}


def current() -> Runtime:
    """Return the runtime of this process, made from the environment at the first call.

    A forked child gets one of its own: connections and threads do not survive a fork.
    """
    pid = os.getpid()
    # Of several threads that come first, one makes the runtime of all.
    return _runtimes.get(pid) or _runtimes.setdefault(pid, Runtime())


def use(runtime: Runtime | None) -> None:
    """Make `runtime` the one of this process; None makes the next call build a new one."""
    if runtime is None:
        _runtimes.pop(os.getpid(), None)
    else:
        _runtimes[os.getpid()] = runtime


def close() -> None:
    """Close the runtime of this process, if it has one."""
    made = _runtimes.pop(os.getpid(), None)
    if made is not None:
        made.close()
