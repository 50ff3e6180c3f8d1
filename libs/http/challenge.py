"""The challenge of a 401: https://www.rfc-editor.org/rfc/rfc6750#section-3."""

from __future__ import annotations

import re

from google.rpc import error_details_pb2, status_pb2

from libs.identity.errors import CertificateMissing, CertificateUnknown, TokenMissing

_BY_CERTIFICATE = frozenset({CertificateMissing.reason, CertificateUnknown.reason})
"""Refusals that no token changes. HTTP has no challenge for certificates."""


def challenge_of(status: status_pb2.Status, resource_metadata: str = "") -> str:
    """Value of WWW-Authenticate for a call that is not authenticated; "" if there is none.

    A call without a token gets no error, since it may not have known that it needs one.
    """
    info = error_details_pb2.ErrorInfo()
    reason = next((info.reason for detail in status.details if detail.Is(info.DESCRIPTOR) and detail.Unpack(info)), "")
    if reason in _BY_CERTIFICATE:
        return ""
    parts = []
    if reason != TokenMissing.reason:
        text = re.sub(r"[^ !#-\[\]-~]", "", status.message)
        parts += ['error="invalid_token"', f'error_description="{text}"']
    if resource_metadata:
        parts.append(f'resource_metadata="{resource_metadata}"')
    return f"Bearer {', '.join(parts)}".strip()
