"""What a client's callers pass in, checked before it is sent: a `ValueError` names the argument.

Numbers may be NumPy's. A truth value is no number, nor is text of digits: both are mistakes more
often than meant.
"""

from __future__ import annotations

import math
import numbers
import os
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

LONGEST_SECONDS = 1e9
"""gRPC takes a deadline beyond some more for one that has passed."""


def text(name: str, value: object) -> str:
    """A string that UTF-8 can hold.

    Raises:
        ValueError: it is none.
    """
    if not isinstance(value, str):
        raise ValueError(f"{name} must be text, not {_kind(value)}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        half = ascii(value[error.start])
        raise ValueError(
            f"{name} holds {half}, half a character, which can't be sent; was it read with another "
            "encoding than it was written in?"
        ) from None
    return str(value)


def optional_text(name: str, value: object) -> str:
    """The same, where None stands for "".

    Raises:
        ValueError: it is something else.
    """
    return "" if value is None else text(name, value)


def number(name: str, value: object, *, most: float, least: float = -LONGEST_SECONDS) -> float:
    """A number within bounds.

    Raises:
        ValueError: it is none.
    """
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        raise ValueError(f"{name} must be a number, not {_kind(value)}")
    try:
        found = float(value)
    except OverflowError:
        found = math.inf
    if not least <= found <= most:
        bound = f"{least:g} or above" if found < least else f"at most {most:g}"
        wanted = "a number" if math.isnan(found) else bound
        raise ValueError(f"{name} must be {wanted}, not {_short(value)}")
    return found


def float32(name: str, value: object) -> float:
    """A number of 0 or above that the wire's 32 bits can hold.

    Raises:
        ValueError: it is none.
    """
    found = number(name, value, least=0.0, most=float(np.finfo(np.float32).max))
    if found and not np.float32(found):
        raise ValueError(f"{name} is {found:g}, which 32 bits hold as 0; write 0 if that is meant")
    return found


def whole(name: str, value: object, bits: int) -> int:
    """A whole number of 0 to 2**bits - 1.

    Raises:
        ValueError: it is none.
    """
    if not isinstance(value, numbers.Integral) or isinstance(value, bool):
        raise ValueError(f"{name} must be a whole number, not {_shown(value)}")
    found = int(value)
    if not 0 <= found < 2**bits:
        raise ValueError(f"{name} must be within 0 and 2**{bits} - 1, not {_short(value)}")
    return found


def flag(name: str, value: object) -> bool | None:
    """True, False, or None.

    Raises:
        ValueError: it is something else.
    """
    if value is None:
        return None
    if not isinstance(value, bool | np.bool_):
        raise ValueError(f"{name} must be True, False or None, not {_shown(value)}")
    return bool(value)


def optional_path(name: str, value: object) -> Path | None:
    """A file's path, or None.

    Raises:
        ValueError: it is something else.
    """
    if value is None:
        return None
    path = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(path, str) or not path or "\0" in path:
        raise ValueError(f"{name} must be the path of a file, not {_shown(value)}")
    return Path(path)


def sequence(name: str, value: object, of: str) -> list[object]:
    """A list, a tuple, an array or another iterable; text isn't one of characters.

    Raises:
        ValueError: it is none.
    """
    if isinstance(value, str | bytes | bytearray | memoryview) or not isinstance(value, Iterable):
        raise ValueError(f"{name} must be a list of {of}, not {_kind(value)}")
    try:
        return list(value)
    except TypeError:  # an array without a dimension
        raise ValueError(f"{name} must be a list of {of}, not {_kind(value)}") from None


def vectors(name: str, value: object, length: int) -> NDArray[np.float32]:
    """float32[any number above 0, length] of finite numbers, from any array-like of that shape, or
    of one of them.

    Raises:
        ValueError: it is none.
    """
    wanted = f"{name} must be {length} numbers, or several times as many"
    found = _finite(
        value, wanted, lambda shape: shape[-1:] == (length,) and len(shape) < 3 and 0 not in shape
    )
    return found.reshape(-1, length)


def finite_numbers(name: str, value: object) -> NDArray[np.float32]:
    """float32[any number] of finite numbers, from any array-like.

    Raises:
        ValueError: it is none.
    """
    return _finite(value, f"{name} must be a list of numbers", lambda shape: len(shape) == 1)


def _finite(
    value: object, wanted: str, fits: Callable[[tuple[int, ...]], bool]
) -> NDArray[np.float32]:
    try:
        array = np.asarray(value)
    except Exception as error:  # whatever a library's own arrays say: torch's of gradients
        raise ValueError(f"{wanted}: {' '.join(str(error).split())}") from error
    if array.dtype.kind not in "fiu":
        raise ValueError(f"{wanted}, not {_kind(value)} of {array.dtype}")
    if not fits(array.shape):
        raise ValueError(f"{wanted}, not an array of shape {list(array.shape)}")
    with np.errstate(over="ignore"):
        found = array.astype(np.float32)
    if not np.isfinite(found).all():
        raise ValueError(f"{wanted} that 32 bits can hold, not {array.tolist()}")
    return found


def _kind(value: object) -> str:
    return type(value).__name__


def _shown(value: object) -> str:
    """A number as it is, anything else by its kind."""
    return _short(value) if isinstance(value, numbers.Number) else _kind(value)


def _short(value: object) -> str:
    try:
        shown = str(value)
    except ValueError:  # Python writes no number of more than 4300 digits
        return "one of thousands of digits"
    return shown if len(shown) <= 40 else f"{shown[:40]}..."
