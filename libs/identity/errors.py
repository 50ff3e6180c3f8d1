"""Refusals of a caller's credentials. They show the reason and nothing of the token, the keys or the configuration."""

from __future__ import annotations

from libs.errors import BatonError


class Unauthenticated(BatonError):
    """The caller is not authenticated."""

    code = "UNAUTHENTICATED"
    reason = "UNAUTHENTICATED"


class TokenMissing(Unauthenticated):
    """This listener requires a token: send authorization: Bearer TOKEN."""

    reason = "TOKEN_MISSING"


class TokenMalformed(Unauthenticated):
    """The token cannot be read: send authorization: Bearer TOKEN, with one token."""

    reason = "TOKEN_MALFORMED"


class TokenUnknown(Unauthenticated):
    """The token is not in use."""

    reason = "TOKEN_UNKNOWN"


class TokenExpired(Unauthenticated):
    """The token has expired: get a new one."""

    reason = "TOKEN_EXPIRED"


class TokenNotYetValid(Unauthenticated):
    """The token is not valid yet: check the clocks."""

    reason = "TOKEN_NOT_YET_VALID"


class TokenWrongAudience(Unauthenticated):
    """The token was issued for another audience."""

    reason = "TOKEN_WRONG_AUDIENCE"


class TokenWrongIssuer(Unauthenticated):
    """The token comes from another issuer."""

    reason = "TOKEN_WRONG_ISSUER"


class TokenBadSignature(Unauthenticated):
    """The token's signature is wrong."""

    reason = "TOKEN_BAD_SIGNATURE"


class TokenUnknownKey(Unauthenticated):
    """The token is signed with an unknown key."""

    reason = "TOKEN_UNKNOWN_KEY"


class TokenAlgorithm(Unauthenticated):
    """The token's algorithm is not allowed."""

    reason = "TOKEN_ALGORITHM"


class TokenClaimMissing(Unauthenticated):
    """The token lacks one of the claims iss, aud, sub and exp."""

    reason = "TOKEN_CLAIM_MISSING"


class TokenTooLarge(Unauthenticated):
    """The token names too many accounts."""

    reason = "TOKEN_TOO_LARGE"


class CertificateMissing(Unauthenticated):
    """This listener requires a client certificate with a URI, DNS or e-mail name."""

    reason = "CERTIFICATE_MISSING"


class CertificateUnknown(Unauthenticated):
    """The client certificate's names are not known here."""

    reason = "CERTIFICATE_UNKNOWN"


class CertificateRevoked(Unauthenticated):
    """The client certificate was revoked: get a new one."""

    reason = "CERTIFICATE_REVOKED"


class KeysUnavailable(BatonError):
    """The keys that verify tokens are out of reach. Nothing was changed: try again."""

    code = "UNAVAILABLE"
    reason = "KEYS_UNAVAILABLE"
    retry_seconds = 1.0
