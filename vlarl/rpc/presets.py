# ruff: noqa: ANN401 - methods are passed through as gRPC declares them
"""What every call of a channel carries: a token, and a deadline where its caller set none.

gRPC's own client interceptors would do for synchronous channels; with the asynchronous ones
streams lose back-pressure on the way. Wrapping the channel's methods does for both.
"""

from __future__ import annotations

from typing import Any, Self

import grpc

from vlarl.config.network import ChannelConfig
from vlarl.rpc.arguments import optional_text
from vlarl.rpc.auth import TokenFile, check_token


class Presets:
    """The token, and the deadline of unary calls."""

    def __init__(self, config: ChannelConfig, token: str | None) -> None:
        """Takes the token itself, or reads it from the configured file.

        Raises:
            ValueError: the token is no text.
            TokenError: the token file is missing or empty, or a token can't be sent.
        """
        self.timeout = config.timeout_seconds
        self._token = optional_text("token", token).strip()
        check_token(self._token)
        file = config.token_file
        self._file = TokenFile(file) if file and not self._token else None

    def metadata(self, given: Any) -> list[tuple[str, str | bytes]]:
        """The caller's metadata with the token added."""
        if self._token:
            return [*(given or ()), ("authorization", f"Bearer {self._token}")]
        if self._file:
            return [*(given or ()), ("authorization", self._file.authorization())]
        return list(given or ())


class _Call:
    """A method of a channel with the presets filled in."""

    def __init__(self, call: Any, presets: Presets, timeout: float | None) -> None:
        self._call = call
        self._presets = presets
        self._timeout = timeout

    def _filled(self, options: dict[str, Any]) -> dict[str, Any]:
        options["metadata"] = self._presets.metadata(options.get("metadata"))
        if options.get("timeout") is None:
            options["timeout"] = self._timeout
        return options

    def __call__(self, *request: Any, **options: Any) -> Any:
        return self._call(*request, **self._filled(options))

    def with_call(self, *request: Any, **options: Any) -> Any:
        return self._call.with_call(*request, **self._filled(options))

    def future(self, *request: Any, **options: Any) -> Any:
        return self._call.future(*request, **self._filled(options))


class _PresetMethods:
    """The four kinds of methods, which synchronous and asynchronous channels have alike."""

    def __init__(self, channel: Any, presets: Presets) -> None:
        self._channel = channel
        self._presets = presets

    def unary_unary(self, *args: Any, **options: Any) -> Any:
        call = self._channel.unary_unary(*args, **options)
        return _Call(call, self._presets, self._presets.timeout)

    def unary_stream(self, *args: Any, **options: Any) -> Any:
        return _Call(self._channel.unary_stream(*args, **options), self._presets, None)

    def stream_unary(self, *args: Any, **options: Any) -> Any:
        return _Call(self._channel.stream_unary(*args, **options), self._presets, None)

    def stream_stream(self, *args: Any, **options: Any) -> Any:
        return _Call(self._channel.stream_stream(*args, **options), self._presets, None)


class SyncPresetChannel(_PresetMethods, grpc.Channel):
    """A channel for threads."""

    def subscribe(self, *args: Any, **options: Any) -> None:
        """Calls back on each change of the connection."""
        self._channel.subscribe(*args, **options)

    def unsubscribe(self, *args: Any, **options: Any) -> None:
        """Ends `subscribe`."""
        self._channel.unsubscribe(*args, **options)

    def close(self) -> None:
        """Cancels calls in progress."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class AsyncPresetChannel(_PresetMethods, grpc.aio.Channel):
    """A channel for asyncio."""

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        """State of the connection."""
        state: grpc.ChannelConnectivity = self._channel.get_state(try_to_connect)
        return state

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        """Returns when the connection has another state."""
        await self._channel.wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        """Returns when the channel is connected."""
        await self._channel.channel_ready()

    async def close(self, grace: float | None = None) -> None:
        """Ends calls in progress: after `grace` seconds, or at once."""
        await self._channel.close(grace)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()
