# ruff: noqa
"""Generated from the contract by `make protos`. Do not edit."""

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
    b'ield_mask.proto\x1a\x18sandbox/v1/sandbox.proto"\x81\x01\n\x14CreateSandboxRequest\x12*\n\x07sandbox\x18\x01 \x01(\x0b2\x13.sandbox.v1'
    b'.SandboxB\x04\xe2A\x01\x02\x12\x12\n\nsandbox_id\x18\x02 \x01(\t\x12\x12\n\nrequest_id\x18\x03 \x01(\t\x12\x15\n\rvalidate_only\x18\x04 \x01(\x08"\'\n\x11GetSandboxReque'
    b'st\x12\x12\n\x04name\x18\x01 \x01(\tB\x04\xe2A\x01\x02"c\n\x14ListSandboxesRequest\x12\x11\n\tpage_size\x18\x01 \x01(\x05\x12\x12\n\npage_token\x18\x02 \x01(\t\x12\x0e\n\x06filter\x18'
    b'\x03 \x01(\t\x12\x14\n\x0cshow_deleted\x18\x04 \x01(\x08"X\n\x15ListSandboxesResponse\x12&\n\tsandboxes\x18\x01 \x03(\x0b2\x13.sandbox.v1.Sandbox\x12\x17\n\x0f'
    b'next_page_token\x18\x02 \x01(\t"S\n\x15WatchSandboxesRequest\x12\x0e\n\x06filter\x18\x01 \x01(\t\x12\x14\n\x0cshow_deleted\x18\x02 \x01(\x08\x12\x14\n\x0cresume_t'
    b'oken\x18\x03 \x01(\t"\x86\x01\n\x16WatchSandboxesResponse\x12&\n\tsandboxes\x18\x01 \x03(\x0b2\x13.sandbox.v1.Sandbox\x12\x0f\n\x07removed\x18\x02 \x03(\t\x12\x14'
    b'\n\x0cresume_token\x18\x03 \x01(\t\x12\r\n\x05reset\x18\x04 \x01(\x08\x12\x0e\n\x06synced\x18\x05 \x01(\x08"\xca\x01\n\x14UpdateSandboxRequest\x12*\n\x07sandbox\x18\x01 \x01(\x0b2\x13.'
    b'sandbox.v1.SandboxB\x04\xe2A\x01\x02\x12/\n\x0bupdate_mask\x18\x02 \x01(\x0b2\x1a.google.protobuf.FieldMask\x12\x12\n\nrequest_id\x18\x03 \x01(\t\x12\x15\n'
    b'\rvalidate_only\x18\x04 \x01(\x08\x12\x15\n\rallow_missing\x18\x05 \x01(\x08\x12\x13\n\x0blease_token\x18\x06 \x01(\t"\x8f\x01\n\x14DeleteSandboxRequest\x12\x12\n\x04nam'
    b'e\x18\x01 \x01(\tB\x04\xe2A\x01\x02\x12\x0c\n\x04etag\x18\x02 \x01(\t\x12\x12\n\nrequest_id\x18\x03 \x01(\t\x12\x15\n\rvalidate_only\x18\x04 \x01(\x08\x12\x15\n\rallow_missing\x18\x05 \x01(\x08\x12\x13\n'
    b'\x0blease_token\x18\x06 \x01(\t"z\n\x16UndeleteSandboxRequest\x12\x12\n\x04name\x18\x01 \x01(\tB\x04\xe2A\x01\x02\x12\x0c\n\x04etag\x18\x02 \x01(\t\x12\x12\n\nrequest_id\x18\x03 \x01'
    b'(\t\x12\x15\n\rvalidate_only\x18\x04 \x01(\x08\x12\x13\n\x0blease_token\x18\x05 \x01(\t"\x81\x01\n\x13AcquireLeaseRequest\x12\x12\n\x04name\x18\x01 \x01(\tB\x04\xe2A\x01\x02\x12\x14\n\x06ho'
    b'lder\x18\x02 \x01(\tB\x04\xe2A\x01\x02\x12,\n\x03ttl\x18\x03 \x01(\x0b2\x19.google.protobuf.DurationB\x04\xe2A\x01\x02\x12\x12\n\nrequest_id\x18\x04 \x01(\t"x\n\x11RenewLease'
    b'Request\x12\x12\n\x04name\x18\x01 \x01(\tB\x04\xe2A\x01\x02\x12\x13\n\x05token\x18\x02 \x01(\tB\x04\xe2A\x01\x02\x12&\n\x03ttl\x18\x03 \x01(\x0b2\x19.google.protobuf.Duration\x12\x12\n\nrequ'
    b'est_id\x18\x04 \x01(\t"R\n\x13ReleaseLeaseRequest\x12\x12\n\x04name\x18\x01 \x01(\tB\x04\xe2A\x01\x02\x12\x13\n\x05token\x18\x02 \x01(\tB\x04\xe2A\x01\x02\x12\x12\n\nrequest_id\x18\x03 \x01(\t'
    b'2\xb3\x0e\n\x0eSandboxService\x12\xbd\x01\n\rCreateSandbox\x12 .sandbox.v1.CreateSandboxRequest\x1a\x13.sandbox.v1.Sandbox"u\x9a\xee'
    b'\x18S\n\x16sandboxes/{sandbox_id}\x12\nsandbox_id\x18\x01*\x06create2\nrequest_idR\x08revisionZ\rvalidate_only\x82\xd3\xe4\x93\x02\x18"\r/v1'
    b'/sandboxes:\x07sandbox\x12t\n\nGetSandbox\x12\x1d.sandbox.v1.GetSandboxRequest\x1a\x13.sandbox.v1.Sandbox"2\x90\x02\x01\x9a\xee\x18\r\n\x06'
    b'{name}*\x03get\x82\xd3\xe4\x93\x02\x18\x12\x16/v1/{name=sandboxes/*}\x12\xb2\x01\n\rListSandboxes\x12 .sandbox.v1.ListSandboxesRequest\x1a!.'
    b'sandbox.v1.ListSandboxesResponse"\\\x90\x02\x01\x9a\xee\x18@*\x04list:8\n\tsandboxes\x12\x0fnext_page_token\x1a\npage_token"\tpage_'
    b'size(20\xf4\x03\x82\xd3\xe4\x93\x02\x0f\x12\r/v1/sandboxes\x12\xb5\x01\n\x0eWatchSandboxes\x12!.sandbox.v1.WatchSandboxesRequest\x1a".sandbox.v'
    b'1.WatchSandboxesResponse"Z\x90\x02\x01\x9a\xee\x188*\x03getJ1\n\tsandboxes\x12\x07removed\x1a\x0cresume_token"\x05reset*\x06synced\x82\xd3\xe4\x93\x02\x15\x12'
    b'\x13/v1/sandboxes:watch0\x01\x12\xeb\x01\n\rUpdateSandbox\x12 .sandbox.v1.UpdateSandboxRequest\x1a\x13.sandbox.v1.Sandbox"'
    b'\xa2\x01\x9a\xee\x18o\n\x0e{sandbox.name}"\rallow_missing*\x06update2\nrequest_idR\x08revisionZ\rvalidate_onlyb!sandboxes/[a'
    b'-z0-9][a-z0-9-]{0,62}\x82\xd3\xe4\x93\x02)2\x1e/v1/{sandbox.name=sandboxes/*}:\x07sandbox\x12\xae\x01\n\rDeleteSandbox\x12 .sandbox'
    b'.v1.DeleteSandboxRequest\x1a\x13.sandbox.v1.Sandbox"f\x9a\xee\x18D\n\x06{name}*\x06delete2\nrequest_idR\x08revisionZ\rvalid'
    b'ate_onlyj\rallow_missing\x82\xd3\xe4\x93\x02\x18*\x16/v1/{name=sandboxes/*}\x12\xaf\x01\n\x0fUndeleteSandbox\x12".sandbox.v1.UndeleteS'
    b'andboxRequest\x1a\x13.sandbox.v1.Sandbox"c\x9a\xee\x185\n\x06{name}*\x06update2\nrequest_idR\x08revisionZ\rvalidate_only\x82\xd3\xe4'
    b'\x93\x02$"\x1f/v1/{name=sandboxes/*}:undelete:\x01*\x12\x9e\x01\n\x0cAcquireLease\x12\x1f.sandbox.v1.AcquireLeaseRequest\x1a\x13.sand'
    b'box.v1.Sandbox"X\x9a\xee\x18&\n\x06{name}*\x06update2\nrequest_idR\x08revision\x82\xd3\xe4\x93\x02("#/v1/{name=sandboxes/*}:acquire'
    b'Lease:\x01*\x12\x98\x01\n\nRenewLease\x12\x1d.sandbox.v1.RenewLeaseRequest\x1a\x13.sandbox.v1.Sandbox"V\x9a\xee\x18&\n\x06{name}*\x06updat'
    b'e2\nrequest_idR\x08revision\x82\xd3\xe4\x93\x02&"!/v1/{name=sandboxes/*}:renewLease:\x01*\x12\x9e\x01\n\x0cReleaseLease\x12\x1f.sandbox.v'
    b'1.ReleaseLeaseRequest\x1a\x13.sandbox.v1.Sandbox"X\x9a\xee\x18&\n\x06{name}*\x06update2\nrequest_idR\x08revision\x82\xd3\xe4\x93\x02("#/v'
    b'1/{name=sandboxes/*}:releaseLease:\x01*\x1aP\xa2\xee\x18L\n\x16sandbox-schema-version\x10\x01\x18\x02".\x08\x01\x12\x12sandbox.v1.Sandbox\x1a\x16'
    b'sandbox.v1.FlatSandboxBo\n\x0ecom.sandbox.v1B\x13SandboxServiceProtoP\x01Z\x1ebaton/gen/sandbox/v1;sandboxv1\xaa'
    b'\x02\nSandbox.V1\xca\x02\nSandbox\\V1\xea\x02\x0bSandbox::V1b\x06proto3',
    globals(),
)
