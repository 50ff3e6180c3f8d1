"""The operator's API for the ledger of acknowledged writes."""

from __future__ import annotations

from libs.ownership.wire import STORE_NUMBERS
from libs.pb.baton.control.v1 import control_pb2 as pb
from libs.rpc.errors import Context
from services.router.api.messages import timestamp
from services.router.core.write_ledger import Finding, LedgerCounts, Loss
from services.router.flows.calls.write_auditor import Auditor

LOSS_NUMBERS = {loss: pb.LostWrite.Loss.Value(f"LOSS_{loss.value}") for loss in Loss}


class LedgerMethods:
    """Methods of the control API."""

    def __init__(self, auditor: Auditor) -> None:
        self._auditor = auditor

    async def GetLedger(self, request: pb.GetLedgerRequest, context: Context) -> pb.GetLedgerResponse:  # noqa: N802
        ledger = self._auditor.ledger
        return pb.GetLedgerResponse(
            counts=counts_to_pb(ledger.counts),
            known=ledger.known,
            lost=[_finding_to_pb(finding) for finding in reversed(ledger.findings)],
        )


def counts_to_pb(counts: LedgerCounts) -> pb.LedgerCounts:
    return pb.LedgerCounts(**counts._asdict())


def _finding_to_pb(finding: Finding) -> pb.LostWrite:
    write = finding.write
    return pb.LostWrite(
        loss=LOSS_NUMBERS[finding.loss],
        key=write.key,
        request_id=write.request_id,
        operation=write.operation,
        store=STORE_NUMBERS[write.store],
        revision=write.revision,
        content=write.content,
        acknowledged_time=timestamp(write.time_seconds),
        found_time=timestamp(finding.found_seconds),
        rows=[
            pb.LostWrite.Row(
                store=STORE_NUMBERS[row.store], owned=row.owned, revision=row.write_revision, content=row.content
            )
            for row in finding.rows
        ],
    )
