"""An asset that people are asked about."""

from __future__ import annotations

from flowstone import Approval, asset


@asset(approval=Approval(message="May it?"))
def asked() -> int:
    return 1
