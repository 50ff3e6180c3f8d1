# ruff: noqa
"""Generated from the contract by `make protos`. Do not edit."""

from baton_client.pb import flat_pb2 as _flat_pb2
from baton_client.pb import options_pb2 as _options_pb2
from baton_client.pb import sandbox_pb2 as _sandbox_pb2
from google.api import annotations_pb2 as _annotations_pb2
from google.api import field_behavior_pb2 as _field_behavior_pb2
from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import field_mask_pb2 as _field_mask_pb2
from baton_client.loading import load as _load

DESCRIPTOR = _load(
    b'\n sandbox/v1/sandbox_service.proto\x12\nsandbox.v1\x1a\x1ebaton/options/v1/options.proto\x1a\x1cgoogle/api/annot'
    b'ations.proto\x1a\x1fgoogle/api/field_behavior.proto\x1a\x1egoogle/protobuf/duration.proto\x1a google/protobuf/f'
    b'ield_mask.proto\x1a\x15sandbox/v1/flat.proto\x1a\x18sandbox/v1/sandbox.proto"\x81\x01\n\x14CreateSandboxRequest\x12*\n\x07san'
    b'dbox\x18\x01 \x01(\x0b2\x13.sandbox.v1.SandboxB\x04\xe2A\x01\x02\x12\x12\n\nsandbox_id\x18\x02 \x01(\t\x12\x12\n\nrequest_id\x18\x03 \x01(\t\x12\x15\n\rvalidate_only\x18\x04'
    b' \x01(\x08"\'\n\x11GetSandboxRequest\x12\x12\n\x04name\x18\x01 \x01(\tB\x04\xe2A\x01\x02"c\n\x14ListSandboxesRequest\x12\x11\n\tpage_size\x18\x01 \x01(\x05\x12\x12\n\npage'
    b'_token\x18\x02 \x01(\t\x12\x0e\n\x06filter\x18\x03 \x01(\t\x12\x14\n\x0cshow_deleted\x18\x04 \x01(\x08"X\n\x15ListSandboxesResponse\x12&\n\tsandboxes\x18\x01 \x03(\x0b2\x13'
    b'.sandbox.v1.Sandbox\x12\x17\n\x0fnext_page_token\x18\x02 \x01(\t"S\n\x15WatchSandboxesRequest\x12\x0e\n\x06filter\x18\x01 \x01(\t\x12\x14\n\x0cshow_de'
    b'leted\x18\x02 \x01(\x08\x12\x14\n\x0cresume_token\x18\x03 \x01(\t"\x86\x01\n\x16WatchSandboxesResponse\x12&\n\tsandboxes\x18\x01 \x03(\x0b2\x13.sandbox.v1.San'
    b'dbox\x12\x0f\n\x07removed\x18\x02 \x03(\t\x12\x14\n\x0cresume_token\x18\x03 \x01(\t\x12\r\n\x05reset\x18\x04 \x01(\x08\x12\x0e\n\x06synced\x18\x05 \x01(\x08"\xca\x01\n\x14UpdateSandboxRequ'
    b'est\x12*\n\x07sandbox\x18\x01 \x01(\x0b2\x13.sandbox.v1.SandboxB\x04\xe2A\x01\x02\x12/\n\x0bupdate_mask\x18\x02 \x01(\x0b2\x1a.google.protobuf.FieldMask'
    b'\x12\x12\n\nrequest_id\x18\x03 \x01(\t\x12\x15\n\rvalidate_only\x18\x04 \x01(\x08\x12\x15\n\rallow_missing\x18\x05 \x01(\x08\x12\x13\n\x0blease_token\x18\x06 \x01(\t"\x8f\x01\n\x14Dele'
    b'teSandboxRequest\x12\x12\n\x04name\x18\x01 \x01(\tB\x04\xe2A\x01\x02\x12\x0c\n\x04etag\x18\x02 \x01(\t\x12\x12\n\nrequest_id\x18\x03 \x01(\t\x12\x15\n\rvalidate_only\x18\x04 \x01(\x08\x12\x15\n'
    b'\rallow_missing\x18\x05 \x01(\x08\x12\x13\n\x0blease_token\x18\x06 \x01(\t"z\n\x16UndeleteSandboxRequest\x12\x12\n\x04name\x18\x01 \x01(\tB\x04\xe2A\x01\x02\x12\x0c\n\x04etag\x18'
    b'\x02 \x01(\t\x12\x12\n\nrequest_id\x18\x03 \x01(\t\x12\x15\n\rvalidate_only\x18\x04 \x01(\x08\x12\x13\n\x0blease_token\x18\x05 \x01(\t"\x81\x01\n\x13AcquireLeaseRequest\x12\x12\n'
    b'\x04name\x18\x01 \x01(\tB\x04\xe2A\x01\x02\x12\x14\n\x06holder\x18\x02 \x01(\tB\x04\xe2A\x01\x02\x12,\n\x03ttl\x18\x03 \x01(\x0b2\x19.google.protobuf.DurationB\x04\xe2A\x01\x02\x12\x12\n\nrequest'
    b'_id\x18\x04 \x01(\t"x\n\x11RenewLeaseRequest\x12\x12\n\x04name\x18\x01 \x01(\tB\x04\xe2A\x01\x02\x12\x13\n\x05token\x18\x02 \x01(\tB\x04\xe2A\x01\x02\x12&\n\x03ttl\x18\x03 \x01(\x0b2\x19.google.pr'
    b'otobuf.Duration\x12\x12\n\nrequest_id\x18\x04 \x01(\t"R\n\x13ReleaseLeaseRequest\x12\x12\n\x04name\x18\x01 \x01(\tB\x04\xe2A\x01\x02\x12\x13\n\x05token\x18\x02 \x01(\tB\x04\xe2'
    b'A\x01\x02\x12\x12\n\nrequest_id\x18\x03 \x01(\t2\xb3\x0e\n\x0eSandboxService\x12\xbd\x01\n\rCreateSandbox\x12 .sandbox.v1.CreateSandboxRequest\x1a\x13'
    b'.sandbox.v1.Sandbox"u\x9a\xee\x18S\n\x16sandboxes/{sandbox_id}\x12\nsandbox_id\x18\x01*\x06create2\nrequest_idR\x08revisionZ\rv'
    b'alidate_only\x82\xd3\xe4\x93\x02\x18"\r/v1/sandboxes:\x07sandbox\x12t\n\nGetSandbox\x12\x1d.sandbox.v1.GetSandboxRequest\x1a\x13.sandbo'
    b'x.v1.Sandbox"2\x90\x02\x01\x9a\xee\x18\r\n\x06{name}*\x03get\x82\xd3\xe4\x93\x02\x18\x12\x16/v1/{name=sandboxes/*}\x12\xb2\x01\n\rListSandboxes\x12 .sandbox.v1.'
    b'ListSandboxesRequest\x1a!.sandbox.v1.ListSandboxesResponse"\\\x90\x02\x01\x9a\xee\x18@*\x04list:8\n\tsandboxes\x12\x0fnext_page_t'
    b'oken\x1a\npage_token"\tpage_size(20\xf4\x03\x82\xd3\xe4\x93\x02\x0f\x12\r/v1/sandboxes\x12\xb5\x01\n\x0eWatchSandboxes\x12!.sandbox.v1.WatchSandb'
    b'oxesRequest\x1a".sandbox.v1.WatchSandboxesResponse"Z\x90\x02\x01\x9a\xee\x188*\x03getJ1\n\tsandboxes\x12\x07removed\x1a\x0cresume_toke'
    b'n"\x05reset*\x06synced\x82\xd3\xe4\x93\x02\x15\x12\x13/v1/sandboxes:watch0\x01\x12\xeb\x01\n\rUpdateSandbox\x12 .sandbox.v1.UpdateSandboxReques'
    b't\x1a\x13.sandbox.v1.Sandbox"\xa2\x01\x9a\xee\x18o\n\x0e{sandbox.name}"\rallow_missing*\x06update2\nrequest_idR\x08revisionZ\rvali'
    b'date_onlyb!sandboxes/[a-z0-9][a-z0-9-]{0,62}\x82\xd3\xe4\x93\x02)2\x1e/v1/{sandbox.name=sandboxes/*}:\x07sandbox\x12\xae\x01\n\r'
    b'DeleteSandbox\x12 .sandbox.v1.DeleteSandboxRequest\x1a\x13.sandbox.v1.Sandbox"f\x9a\xee\x18D\n\x06{name}*\x06delete2\nrequ'
    b'est_idR\x08revisionZ\rvalidate_onlyj\rallow_missing\x82\xd3\xe4\x93\x02\x18*\x16/v1/{name=sandboxes/*}\x12\xaf\x01\n\x0fUndeleteSandbox'
    b'\x12".sandbox.v1.UndeleteSandboxRequest\x1a\x13.sandbox.v1.Sandbox"c\x9a\xee\x185\n\x06{name}*\x06update2\nrequest_idR\x08rev'
    b'isionZ\rvalidate_only\x82\xd3\xe4\x93\x02$"\x1f/v1/{name=sandboxes/*}:undelete:\x01*\x12\x9e\x01\n\x0cAcquireLease\x12\x1f.sandbox.v1.Acq'
    b'uireLeaseRequest\x1a\x13.sandbox.v1.Sandbox"X\x9a\xee\x18&\n\x06{name}*\x06update2\nrequest_idR\x08revision\x82\xd3\xe4\x93\x02("#/v1/{na'
    b'me=sandboxes/*}:acquireLease:\x01*\x12\x98\x01\n\nRenewLease\x12\x1d.sandbox.v1.RenewLeaseRequest\x1a\x13.sandbox.v1.Sandb'
    b'ox"V\x9a\xee\x18&\n\x06{name}*\x06update2\nrequest_idR\x08revision\x82\xd3\xe4\x93\x02&"!/v1/{name=sandboxes/*}:renewLease:\x01*\x12\x9e\x01\n\x0cR'
    b'eleaseLease\x12\x1f.sandbox.v1.ReleaseLeaseRequest\x1a\x13.sandbox.v1.Sandbox"X\x9a\xee\x18&\n\x06{name}*\x06update2\nrequest'
    b'_idR\x08revision\x82\xd3\xe4\x93\x02("#/v1/{name=sandboxes/*}:releaseLease:\x01*\x1aP\xa2\xee\x18L\n\x16sandbox-schema-version\x10\x01\x18\x02".\x08'
    b'\x01\x12\x12sandbox.v1.Sandbox\x1a\x16sandbox.v1.FlatSandboxBo\n\x0ecom.sandbox.v1B\x13SandboxServiceProtoP\x01Z\x1ebaton/ge'
    b'n/sandbox/v1;sandboxv1\xaa\x02\nSandbox.V1\xca\x02\nSandbox\\V1\xea\x02\x0bSandbox::V1b\x06proto3',
    globals(),
)
