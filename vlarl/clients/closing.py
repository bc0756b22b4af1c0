"""What the clients share with one another: they are closed when their `with` block is left."""

from __future__ import annotations

from types import TracebackType
from typing import Self


class Closing:
    """A context that is `close`d at its end."""

    def close(self) -> None:
        """Gives back what it holds."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
