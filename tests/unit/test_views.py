"""A view has the fields of its message, in a form for programs."""

from google.protobuf.timestamp_pb2 import Timestamp

from libs.pb.baton.control.v1 import control_pb2 as pb
from libs.pb.baton.record.v1 import record_pb2
from services.router.cli.views import status_view, view_of


def test_a_view_has_every_field_under_its_name() -> None:
    for message in (pb.Gate(), pb.StoreStatus(), pb.Flag(), pb.LostWrite(), pb.Limit(), pb.Rehearsal()):
        assert list(view_of(message)) == [field.name for field in message.DESCRIPTOR.fields]


def test_an_absent_field_is_none_and_a_present_one_its_value() -> None:
    assert view_of(pb.Flag(name="x"))["value"] is None
    assert view_of(pb.Flag(name="x", value=False))["value"] is False
    assert view_of(pb.Gate(seconds_left=0))["seconds_left"] == 0.0
    assert view_of(pb.Rehearsal())["finished_time"] is None


def test_values_are_in_a_form_for_programs() -> None:
    lost = pb.LostWrite(
        loss=pb.LostWrite.LOSS_OLDER,
        store=record_pb2.STORE_B,
        content=b"\xff\x00",
        found_time=Timestamp(seconds=1_600_000_000, nanos=500_000_000),
    )
    lost.rows.add(store=record_pb2.STORE_A, owned=True)
    view = view_of(lost)
    assert (view["loss"], view["store"], view["content"]) == ("OLDER", "B", "ff00")
    assert view["found_time"] == "2020-09-13T12:26:40.500+00:00"
    assert (view["rows"][0]["store"], view["rows"][0]["owned"]) == ("A", True)
    row = pb.ExplainResponse.Row(version=record_pb2.Version(term=2, revision=7))
    assert (view_of(row)["version"], view_of(row)["owner"]) == ("2-7", None)


def test_thousandths_are_percent() -> None:
    assert status_view(pb.GetStatusResponse(setting=pb.Setting(phase=pb.PHASE_OFF)))["percent_at_b"] is None
    full = pb.GetStatusResponse(setting=pb.Setting(phase=pb.PHASE_OFF, canary_permille=55), permille_at_b=505)
    assert (status_view(full)["percent_at_b"], status_view(full)["canary_percent"]) == (50.5, 5.5)


def test_a_status_of_the_release_before_has_a_view() -> None:
    """It lacks messages that came later, and says -1 where a number is unknown."""
    old = pb.GetStatusResponse(setting=pb.Setting(phase=pb.PHASE_OFF), buckets_at_b=-1)
    view = status_view(old)
    assert (view["rollback_cost"]["note"], view["stores"], view["gates"]) == ("", {}, [])
