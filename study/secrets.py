"""What must not be shown: passwords in the addresses of stores."""

from __future__ import annotations

import re

_PASSWORD = re.compile(r"(://[^:/@\s]*):[^@/\s]+@")


def without_passwords(text: str) -> str:
    """A text with `***` for the password in every address: `postgresql://me:***@host/name`."""
    return _PASSWORD.sub(r"\1:***@", text)
