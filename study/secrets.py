"""What must not be shown: passwords in the addresses of stores."""

from __future__ import annotations

import re

_PASSWORD = re.compile(r"(://[^:/@\s]*):[^@\s]+@")
"""Also one with a slash, which SQLAlchemy takes."""
_QUERY = re.compile(r"([?&]password=)[^&\s]+")


def without_passwords(text: str) -> str:
    """A text with `***` for the password in every address: `postgresql://me:***@host/name`."""
    return _QUERY.sub(r"\1***", _PASSWORD.sub(r"\1:***@", text))
