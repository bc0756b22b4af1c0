"""What a report can't be made of."""

from __future__ import annotations

from vlarl.errors import FatalError


class ReportError(FatalError):
    """A folder that can't be reported on; the message names the file and says what to do."""
