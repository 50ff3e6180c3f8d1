"""The steps of a change of the callers' identities, one by one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from libs.backend.served_as import KEPT_SECONDS, ServedAs
from libs.clock import ManualClock, SystemClock
from libs.identity.errors import CertificateMissing, CertificateUnknown, TokenMissing, TokenUnknown, Unauthenticated
from libs.identity.none import NoAuthentication
from libs.identity.opening import open_identity
from libs.identity.optional import OptionalAuthentication
from libs.identity.port import Credentials
from libs.identity.principal import ANONYMOUS, Principal, current
from libs.identity.settings import IdentitySettings
from libs.ownership.model import Store
from libs.pb.baton.replication.v1 import replication_pb2 as pb
from libs.rpc import metadata
from libs.rpc.caller import read_caller
from libs.settings import WrongSetting
from services.router.control.memory import MemoryControlStore
from services.router.core.measure import Meter
from services.router.features.operators import open_operators
from services.router.flows.steering.identity import IdentityChange, IdentityNotReady
from services.router.flows.steering.measure import Measurement, Sources
from services.router.flows.steering.migration import Decision, Migration
from services.router.flows.steering.observe import SettingCache
from services.router.flows.steering.processes import PROCESS_SECONDS, StoreProcesses
from services.router.flows.steering.report import Identity
from services.router.settings import RouterSettings
from tests.contracts.identity_adapters import Shown

ANN = Principal("idp:ann")
DECISION = Decision("ann")


@dataclass
class Asked:
    """An authenticator with one outcome."""

    outcome: Principal | Unauthenticated

    async def authenticate(self, credentials: Credentials) -> Principal:
        if isinstance(self.outcome, Unauthenticated):
            raise self.outcome
        return self.outcome


NO_CALL: Any = None


@pytest.mark.parametrize("missing", [TokenMissing(), CertificateMissing()], ids=["token", "certificate"])
async def test_optional_credentials_may_be_missing(missing: Unauthenticated) -> None:
    assert await OptionalAuthentication(Asked(missing)).authenticate(NO_CALL) == ANONYMOUS
    assert await OptionalAuthentication(Asked(ANN)).authenticate(NO_CALL) == ANN


@pytest.mark.parametrize("wrong", [TokenUnknown(), CertificateUnknown()], ids=["token", "certificate"])
async def test_optional_credentials_that_are_wrong_are_refused(wrong: Unauthenticated) -> None:
    with pytest.raises(type(wrong)):
        await OptionalAuthentication(Asked(wrong)).authenticate(NO_CALL)


@pytest.mark.parametrize("kind", [None, "none"])
async def test_credentials_are_optional_only_where_some_are_checked(kind: Any) -> None:
    settings = IdentitySettings(public_auth=kind, public_auth_optional=True)
    with pytest.raises(WrongSetting, match="public_auth_optional"):
        await open_identity(settings, SystemClock())


async def test_a_start_with_optional_credentials_warns(tmp_path: Any, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "tokens.toml"
    path.write_text('[[token]]\nsubject = "ann"\ntoken = "a-token-of-sixteen"\n')
    path.chmod(0o600)
    settings = IdentitySettings(public_auth="tokens", public_auth_file=path, public_auth_optional=True)
    identity = await open_identity(settings, SystemClock())
    assert isinstance(identity.authenticator, OptionalAuthentication)
    assert "without credentials may read and change everything" in caplog.text
    assert isinstance(
        (await open_identity(IdentitySettings(public_auth="none"), SystemClock())).authenticator, NoAuthentication
    )


async def test_credentials_of_operators_are_never_optional(tmp_path: Any) -> None:
    """The control listener takes over settings of the public one. Without credentials its callers would have every
    role."""
    path = tmp_path / "tokens.toml"
    path.write_text('[[token]]\nsubject = "ops"\ntoken = "a-token-of-sixteen"\nroles = ["admin"]\n')
    path.chmod(0o600)
    settings = RouterSettings(
        store_a="127.0.0.1:1",
        store_b="127.0.0.1:2",
        control_store="memory:",
        event_log="memory:",
        public_auth="tokens",
        public_auth_file=path,
        public_auth_optional=True,
        control_auth="tokens",
        control_auth_file=path,
    )
    authenticator = (await open_operators(settings, SystemClock())).identity.authenticator
    assert authenticator is not None
    with pytest.raises(TokenMissing):
        await authenticator.authenticate(Shown())


def test_the_router_names_the_principal_of_its_calls_and_the_setting_that_of_direct_ones() -> None:
    token = current.set(ANN)
    try:
        asked = ((metadata.SERVED_AS, metadata.SUBJECT),)
        internal = [read_caller(found, internal=True) for found in ((), asked, ((metadata.SERVED_AS, "x"),))]
        assert [one.principal for one in internal] == ["anonymous", "idp:ann", "anonymous"]
        public = [read_caller(asked, internal=False, serves_subjects=serves) for serves in (False, True)]
        assert [one.principal for one in public] == ["anonymous", "idp:ann"]
        assert {one.subject for one in (*internal, *public)} == {"idp:ann"}
    finally:
        current.reset(token)


def test_a_store_follows_the_routers() -> None:
    clock = ManualClock()
    served_as = ServedAs(clock)
    assert not served_as.subjects
    for generation, subjects in enumerate((True, True, False, True), 5):
        served_as.learn(subjects=subjects, generation=generation)
        assert served_as.subjects is subjects


def test_a_router_with_an_older_setting_counts_only_without_the_others() -> None:
    clock = ManualClock()
    served_as = ServedAs(clock)
    served_as.learn(subjects=True, generation=5)
    served_as.learn(subjects=False, generation=4)
    assert served_as.subjects
    clock.advance(KEPT_SECONDS + 1)
    served_as.learn(subjects=False, generation=4)
    assert not served_as.subjects, "the control store was restored"


class Changing:
    """A router with two stores."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.control = MemoryControlStore()
        self.cache = SettingCache(self.control, self.clock)
        self.stores = StoreProcesses(self.clock)
        self.measurement = self.router("router-1")
        migration = Migration(self.control, self.cache, lambda setting: pytest.fail("no gate"), self.clock)
        self.change = IdentityChange(migration, self.cache, self.measurement, self.stores)
        self.subjects = False

    def router(self, name: str, *, earlier: bool = False) -> Measurement:
        def identity() -> Identity | None:
            return None if earlier else Identity("jwt", True, self.cache.current.serves_subjects)

        return Measurement(self.control, Meter(), name, self.clock, Sources(identity=identity))

    async def polled(self, *stores: Store, process: str = "1", earlier: bool = False) -> None:
        await self.measurement.exchange()
        for store in stores:
            status = pb.GetStatusResponse(process=process, public_auth="jwt")
            if not earlier:
                status.serves_subjects = self.subjects
            self.stores.note(store, status)


@pytest.fixture
def changing() -> Changing:
    return Changing()


async def test_a_switch_is_journaled_and_in_force_when_every_process_follows(changing: Changing) -> None:
    await changing.polled(*Store)
    before = await changing.change.view()
    assert (before.in_force, before.obstacles, len(before.processes)) == (True, (), 3)
    setting = await changing.change.switch(DECISION, serve_subjects=True)
    (entry,) = await changing.control.journal(1)
    assert setting.serves_subjects and (entry.action, entry.actor, entry.after) == ("identity", "ann", setting)
    changing.subjects = True
    await changing.polled(Store.A)
    assert not (await changing.change.view()).in_force, "B has not reported it"
    await changing.polled(Store.B)
    assert (await changing.change.view()).in_force


async def test_a_process_that_would_not_recognise_a_retry_prevents_the_switch(changing: Changing) -> None:
    await changing.polled(Store.A)
    with pytest.raises(IdentityNotReady, match="store B does not answer"):
        await changing.change.switch(DECISION, serve_subjects=True)
    await changing.polled(Store.B)
    await changing.polled(Store.B, process="2", earlier=True)
    with pytest.raises(IdentityNotReady, match="store B is of an earlier release"):
        await changing.change.switch(DECISION, serve_subjects=True)
    assert not (await changing.change.switch(DECISION, serve_subjects=False)).serves_subjects, "the way back is open"
    changing.clock.advance(PROCESS_SECONDS + 1)
    await changing.polled(*Store)
    assert (await changing.change.switch(DECISION, serve_subjects=True)).serves_subjects


async def test_a_router_of_an_earlier_release_prevents_the_switch(changing: Changing) -> None:
    other = changing.router("router-2", earlier=True)
    for _ in range(2):
        await other.exchange()
        await changing.polled(*Store)
    with pytest.raises(IdentityNotReady, match="router router-2 is of an earlier release"):
        await changing.change.switch(DECISION, serve_subjects=True)


async def test_without_the_reports_of_the_others_a_switch_is_refused(changing: Changing) -> None:
    await changing.polled(*Store)
    changing.clock.advance(PROCESS_SECONDS)
    with pytest.raises(IdentityNotReady, match="reports of the other routers"):
        await changing.change.switch(DECISION, serve_subjects=True)
