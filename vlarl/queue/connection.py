"""The rollout queue's connections to Redis: tried again, and left as soon as they are cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from vlarl.config import ConfigError, QueueConfig

T = TypeVar("T")
_CONNECTIONS = 10_000
"""Most of one client. Each simulator of an env server has one, and redis-py's own bound is 100."""
_TRY_SECONDS = 30.0
"""For one try of a command, its waiting for entries included."""


def open_redis(config: QueueConfig, retries: int) -> Any:  # noqa: ANN401
    """A client of the queue's Redis, which connects with its first command.

    Any: redis-py's types can't tell bytes from text, nor awaitable answers from plain ones.

    Args:
        config: where it is, and how it knows us.
        retries: of whatever finds no connection; 8 take some 15 seconds in all.

    Raises:
        ConfigError: the file of its password can't be read.
    """
    password = _read_password(config.password_file) if config.password_file else None
    tls: dict[str, Any] = config.tls()
    return Redis.from_url(
        config.url,
        password=password,
        **tls,
        max_connections=_CONNECTIONS,
        # Without it a command is sent by asyncio.wait_for, which until Python 3.12 swallows a
        # cancellation that comes as it ends: a trainer that was told to stop went on.
        socket_timeout=None,
        socket_connect_timeout=_TRY_SECONDS,
        retry=_TimedRetry(ExponentialBackoff(cap=2.0, base=0.05), retries=retries),
        retry_on_error=[RedisConnectionError, RedisTimeoutError],
    )


def _read_password(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig").strip()
    except OSError as error:
        raise ConfigError(f"password file {file} can't be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"password file {file} isn't UTF-8: save it as UTF-8") from error


class _TimedRetry(Retry):
    """Gives each try its time, as `socket_timeout` would."""

    async def call_with_retry(
        self,
        do: Callable[[], Awaitable[T]],
        *arguments: Any,  # noqa: ANN401
        **options: Any,  # noqa: ANN401
    ) -> T:
        async def timed() -> T:
            try:
                async with asyncio.timeout(_TRY_SECONDS):
                    return await do()
            except TimeoutError as error:
                raise RedisTimeoutError(f"no answer for {_TRY_SECONDS:g} s") from error

        answer: T = await super().call_with_retry(timed, *arguments, **options)
        return answer
