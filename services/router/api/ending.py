"""The operator's API for the end of a migration."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from libs.errors import InvalidField
from libs.eventlog.seals import Seal
from libs.pb.baton.control.v1 import ending_pb2 as pb
from libs.rpc.errors import Context
from services.router.api.messages import timestamp
from services.router.api.roles import actor_of
from services.router.core.gates import Verdict
from services.router.core.retirement import State
from services.router.core.row_sum import Sum
from services.router.flows.jobs.ending import Backup, Ending
from services.router.flows.steering.migration import Decision

STATES = {state: pb.RetirementStep.State.Value(f"STATE_{state.value}") for state in State}


class EndingMethods:
    """Methods of the control API."""

    def __init__(self, ending: Ending) -> None:
        self._ending = ending

    async def GetCertificate(  # noqa: N802
        self, request: pb.GetCertificateRequest, context: Context
    ) -> pb.GetCertificateResponse:
        found = await self._ending.certificate()
        items = [
            pb.OpenItem(
                name=item.name,
                inconclusive=item.verdict is Verdict.INCONCLUSIVE,
                text=item.text,
                remedy=item.remedy,
            )
            for item in found.open
        ]
        seal = pb.Seal(digest=found.seal.digest, key=found.seal.key, code=found.seal.code)
        return pb.GetCertificateResponse(document=found.document, seal=seal, complete=not items, open=items)

    async def VerifyCertificate(  # noqa: N802
        self, request: pb.VerifyCertificateRequest, context: Context
    ) -> pb.VerifyCertificateResponse:
        seal = request.seal
        return pb.VerifyCertificateResponse(trouble=self._ending.why_no_code(Seal(seal.digest, seal.key, seal.code)))

    async def GetRetirement(  # noqa: N802
        self, request: pb.GetRetirementRequest, context: Context
    ) -> pb.GetRetirementResponse:
        steps, backup, until = await self._ending.retirement()
        answer = pb.GetRetirementResponse(
            steps=[
                pb.RetirementStep(
                    name=step.name,
                    sentence=step.sentence,
                    command=step.command,
                    state=STATES[step.state],
                    check=step.check,
                )
                for step in steps
            ]
        )
        if backup is not None:
            answer.backup.CopyFrom(_backup_to_pb(backup, until))
        return answer

    async def ExportStore(  # noqa: N802
        self, request: pb.ExportStoreRequest, context: Context
    ) -> AsyncGenerator[pb.ExportStoreResponse, None]:
        decision = Decision(actor_of(request.actor), request.reason)
        async for part in self._ending.export(decision):
            if isinstance(part, Sum):
                yield pb.ExportStoreResponse(sum=pb.ExportSum(records=part.records, digest=part.text))
            else:
                yield pb.ExportStoreResponse(records=part)

    async def RecordBackup(  # noqa: N802
        self, request: pb.RecordBackupRequest, context: Context
    ) -> pb.RecordBackupResponse:
        decision = Decision(actor_of(request.actor), request.reason)
        try:
            found = Sum(request.sum.records, int(request.sum.digest, 16))
        except ValueError:
            raise InvalidField("sum.digest", request.sum.digest, "32 hexadecimal digits") from None
        backup = await self._ending.record(decision, request.file, request.file_digest, found)
        return pb.RecordBackupResponse(backup=_backup_to_pb(backup, None))


def _backup_to_pb(backup: Backup, until: float | None) -> pb.Backup:
    return pb.Backup(
        time=timestamp(backup.ended_seconds),
        actor=backup.actor,
        file=backup.file,
        file_digest=backup.file_digest,
        records=backup.records,
        digest=backup.digest,
        keep_until_time=None if until is None else timestamp(until),
    )
