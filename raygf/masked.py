"""Addresses as they may be shown: without what is secret in them."""

from __future__ import annotations

import re

_USER = re.compile(r"(://[^:/@\s]*):\S*@")
"""Up to the last @: people write passwords that should have been encoded."""
_OPTION = re.compile(r"(?i)([?&](?:password|passwd|pwd|secret|token)[^=&\s]*=)[^&\s'\"]*")


def without_password(text: str) -> str:
    """``text`` with the passwords of the URIs in it masked."""
    return _OPTION.sub(r"\1***", _USER.sub(r"\1:***@", text))
