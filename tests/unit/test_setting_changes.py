"""Changes of the setting, in words."""

from dataclasses import replace

import pytest

from services.router.core.phase import Phase, Setting, advance, rollback, set_flag, set_shadow
from services.router.core.setting_changes import changes

FLAG = "sandbox.routing.use_service_layer"
CANARY = Setting(7, Phase.DUAL_WRITE, canary_permille=500, shadow_permille=100)


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        (Setting(1), advance(Setting(1), Phase.SHADOW), ["phase OFF -> SHADOW"]),
        (
            CANARY,
            rollback(CANARY, Phase.OFF),
            ["phase DUAL_WRITE -> OFF", "canary 50 % -> 0 %", "shadow 10 % -> 0 %", "hold set: all traffic at A"],
        ),
        (Setting(1), set_flag(Setting(1), FLAG, False), [f"flag {FLAG} = false (was unset)"]),
        (
            Setting(1, flags=((FLAG, True),)),
            set_flag(Setting(1, flags=((FLAG, True),)), FLAG, None),
            [f"flag {FLAG} = unset (was true)"],
        ),
        (CANARY, set_shadow(CANARY, 5, same=True), ["shadow 10 % -> 0.5 % with itself"]),
        (Setting(1), replace(Setting(1), rehearsal=(3, 9)), ["rehearsal of buckets 3, 9 begun"]),
        (Setting(1, hold=True), Setting(2), ["hold lifted"]),
        (Setting(1), Setting(2), []),
    ],
)
def test_each_part_that_differs_is_named_with_its_value(before: Setting, after: Setting, words: list[str]) -> None:
    assert changes(before, after) == words
