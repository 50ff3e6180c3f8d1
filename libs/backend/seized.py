"""What a store does that learns, while it lives, that its share was seized: it is gone, like one that went back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from libs.backend.evidence import by_terms
from libs.ownership.model import Record, bucket_of
from libs.ownership.terms import take_term
from libs.store.port import StorePorts


def terms_of(records: Sequence[Record]) -> dict[int, int]:
    """By bucket: the highest term that these records show, if it is not the first."""
    terms: dict[int, int] = {}
    for record in records:
        if term := record.row.version.term:
            bucket = bucket_of(record.row.key)
            terms[bucket] = max(term, terms.get(bucket, 0))
    return terms


async def heed_terms(ports: StorePorts, terms: Mapping[int, int]) -> None:
    """Fences the store if a bucket of it is in a lower term than here; before anything of that term is applied, else
    nothing would show later that it was seized. Raises what the store raises."""
    if not terms:
        return
    absences = await ports.transfers.absences(sorted(terms))
    if seized := by_terms(absences, terms):
        await ports.recovery.fence(seized)
        await ports.seizures.take_terms([take_term(one, terms[one.bucket]) for one in absences])
