"""Passwords and tokens in files."""

from __future__ import annotations

from libs.tls.files import NamedFile, TlsUnfit, is_open_to_all

MOST_CHARACTERS = 16_384
"""Longer than any token: a file beyond it was named by mistake."""


def read_secret(file: NamedFile) -> str:
    """Read the first line of the file. Raises TlsUnfit, without the contents."""
    try:
        if is_open_to_all(file.path):
            raise TlsUnfit(f"{file}: every user of this machine can read or change it: chmod 600 {file.path}")
        found = file.path.read_text().strip()
    except OSError as error:
        raise TlsUnfit(f"{file} cannot be read: {error.strerror}; give the path of a file with the secret") from None
    except UnicodeDecodeError:
        raise TlsUnfit(f"{file} is not text in UTF-8: store the secret alone in it") from None
    if not found or len(found) > MOST_CHARACTERS or "\n" in found:
        raise TlsUnfit(f"{file}: it must be one line, not empty, of at most {MOST_CHARACTERS} characters")
    return found
