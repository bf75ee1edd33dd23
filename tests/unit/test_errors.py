from __future__ import annotations

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from raygf.errors import without_password


@settings(deadline=None, derandomize=True, max_examples=100)
@given(st.text("ab1:@/?#%+", min_size=1, max_size=12), st.sampled_from(["http", "postgresql+x", "s3"]))
def test_no_password_is_shown(rest: str, scheme: str) -> None:
    """Whatever it is made of, as long as it has no blanks."""
    password = f"geheim{rest}geheim"
    shown = without_password(f"no answer at {scheme}://me:{password}@host:5000/db?x=1 (port 5000)")
    assert shown == f"no answer at {scheme}://me:***@host:5000/db?x=1 (port 5000)"
    assume("&" not in rest and "#" not in rest)
    shown = without_password(f"{scheme}://host/db?user=me&password={password}&x=1 refused")
    assert "geheim" not in shown and shown.startswith(f"{scheme}://")
