"""Which order of a recovery a store takes."""

from __future__ import annotations

import pytest

from libs.errors import BatonError
from libs.ownership.orders import ForeignControl, LateOrder, Order, check_order, higher

KEPT = Order(1, 7, 3, "c", "recover-7")


@pytest.mark.parametrize(
    ("kept", "order", "refused"),
    [
        (None, None, None),
        (None, KEPT, None),
        (KEPT, KEPT, None),
        (KEPT, KEPT._replace(stage=4), None),
        (KEPT, KEPT._replace(number=8, stage=0), None),
        (KEPT, KEPT._replace(stage=2), LateOrder),
        (KEPT, KEPT._replace(number=6, stage=9), LateOrder),
        (KEPT, KEPT._replace(epoch=0, number=9), LateOrder),
        (KEPT, KEPT._replace(control="d", number=9), ForeignControl),
        (KEPT, KEPT._replace(control="d", epoch=2, number=1), None),
        # A router of an earlier release sends no numbers: its order may be of any age.
        (KEPT, None, LateOrder),
    ],
)
def test_a_store_takes_an_order_that_is_not_below_the_one_it_keeps(
    kept: Order | None, order: Order | None, refused: type[BatonError] | None
) -> None:
    if refused is None:
        check_order(kept, order)
        return
    with pytest.raises(refused):
        check_order(kept, order)


def test_the_higher_of_two_orders_is_that_of_the_later_epoch_job_or_stage() -> None:
    later = (KEPT._replace(epoch=2, number=1), KEPT._replace(number=8), KEPT._replace(stage=4))
    assert [higher(KEPT, one) for one in later] == [higher(one, KEPT) for one in later] == list(later)
    assert higher(None, KEPT) == higher(KEPT, None) == KEPT
    assert higher(None, None) is None
