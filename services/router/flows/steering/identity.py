"""A change of the callers' identities: how each process authenticates, and under which principal it serves requests.

A switch to subjects is refused while a process is known that looks requests up under one principal only, because such a
process runs a request again that another one has served under the other principal. After that the switch needs no
order: each process follows within a second or so, and a retry is recognised at any of them.
"""

from __future__ import annotations

from dataclasses import dataclass

from libs.errors import BatonError
from libs.ownership.model import Store
from services.router.core.phase import Setting
from services.router.flows.steering.measure import Measurement
from services.router.flows.steering.migration import Decision, Migration
from services.router.flows.steering.observe import SettingCache
from services.router.flows.steering.processes import Process, StoreProcesses


class IdentityNotReady(BatonError):
    """A process cannot serve requests under subjects yet."""

    code = "FAILED_PRECONDITION"
    reason = "IDENTITY_NOT_READY"


@dataclass(frozen=True, slots=True)
class IdentityView:
    setting: Setting
    processes: tuple[Process, ...]
    obstacles: tuple[str, ...]
    """Why a switch to subjects is refused."""

    @property
    def in_force(self) -> bool:
        """Whether each known process serves requests under the principal that the setting names."""
        wanted = self.setting.serves_subjects
        return bool(self.processes) and all(
            one.identity and one.identity.serves_subjects == wanted for one in self.processes
        )


class IdentityChange:
    def __init__(
        self, migration: Migration, cache: SettingCache, measurement: Measurement, stores: StoreProcesses
    ) -> None:
        self._migration = migration
        self._cache = cache
        self._measurement = measurement
        self._stores = stores

    async def view(self) -> IdentityView:
        """Raises ControlUnavailable."""
        setting = await self._cache.refresh()
        routers = [
            Process(f"router {name}", "", identity, age) for name, identity, age in self._measurement.identities()
        ]
        stores = {store: self._stores.of(store) for store in Store}
        obstacles = [f"store {store} does not answer" for store, found in stores.items() if not found]
        if not self._measurement.fresh:
            obstacles.append("the reports of the other routers cannot be read")
        processes = (*routers, *stores[Store.A], *stores[Store.B])
        obstacles += [f"{one.name} is of an earlier release" for one in processes if one.identity is None]
        return IdentityView(setting, processes, tuple(obstacles))

    async def switch(self, decision: Decision, *, serve_subjects: bool) -> Setting:
        """Raises IdentityNotReady, and as `Migration.rollback` does. The way back to `anonymous` is always open."""
        if serve_subjects and (obstacles := (await self.view()).obstacles):
            raise IdentityNotReady(f"{'; '.join(obstacles)}: nothing was changed")
        return await self._migration.switch_identity(decision, serve_subjects=serve_subjects)
