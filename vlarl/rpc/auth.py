"""Bearer tokens: a file holds them, clients send the first line, servers accept any line.

Several lines make rotation gapless: add the new token below the old one everywhere, then move it
to the top, then remove the old one. The file is read again whenever it changes.

There are two kinds of callers. The run's own services may do everything; clients, whose tokens are
in a file of their own, may ask and look on: `CLIENT_METHODS`.
"""

from __future__ import annotations

import contextlib
import hmac
from collections.abc import AsyncIterator
from pathlib import Path

from vlarl.errors import ConfigError
from vlarl.rpc.errors import PermissionDenied, Unauthenticated
from vlarl.rpc.interception import Context, Guard, Method

OPEN_SERVICES = frozenset({"grpc.health.v1.Health"})
"""Services that answer without a token: probes have none."""


CLIENT_METHODS = {
    "vlarl.policy.v1.PolicyService": {"PredictActions", "GetPolicy"},
    "vlarl.env.v1.EnvService": {"ListTasks", "Interact"},
    "vlarl.reward.v1.RewardService": {"ScoreTrajectory", "GetRewardModel"},
    "vlarl.trainer.v1.TrainerService": {"GetStatus", "WatchIterations"},
    "grpc.reflection.v1alpha.ServerReflection": {"ServerReflectionInfo"},
}
"""What a client's token is good for, by service."""


class TokenError(ConfigError):
    """A token file that can't be used."""


def check_token(token: str) -> None:
    """Makes sure that a header can carry a token.

    Raises:
        TokenError: it can't.
    """
    if not (token.isascii() and token.isprintable()):
        raise TokenError("a token is one line of printable ASCII characters")


class TokenFile:
    """The tokens in a file, one a line; re-read when the file changes.

    Raises:
        TokenError: the file is missing, or has no token, or one that can't be sent, when it is
            first read.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp: tuple[int, int, int] | None = None
        self._tokens: tuple[str, ...] = ()
        self.tokens()

    def tokens(self) -> tuple[str, ...]:
        """All tokens; the last good ones while the file is being replaced."""
        try:
            stat = self._path.stat()
            stamp = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
            if stamp != self._stamp:
                self._tokens = self._read() or self._tokens
                self._stamp = stamp
        except (OSError, UnicodeDecodeError, TokenError) as error:
            if not self._tokens:
                raise TokenError(f"token file {self._path} can't be read: {error}") from error
        if not self._tokens:
            raise TokenError(f"token file {self._path} is empty")
        return self._tokens

    def _read(self) -> tuple[str, ...]:
        lines = self._path.read_text(encoding="utf-8-sig").splitlines()
        found = tuple(token for token in map(str.strip, lines) if token)
        for token in found:
            check_token(token)
        return found

    def authorization(self) -> str:
        """What a client sends as its `authorization` header."""
        return f"Bearer {self.tokens()[0]}"

    def accepts(self, authorization: str) -> bool:
        """Whether the header carries one of the tokens; takes the same time for all wrong ones."""
        sent = authorization.encode()
        matches = [hmac.compare_digest(sent, f"Bearer {t}".encode()) for t in self.tokens()]
        return any(matches)


def sent_authorization(context: Context) -> str:
    """The call's `authorization` header; "" where it has none."""
    sent = dict(context.invocation_metadata() or ()).get("authorization")
    return sent if isinstance(sent, str) else ""


def token_guard(own: TokenFile, clients: TokenFile | None = None) -> Guard:
    """Refuses calls without a valid token, except to health.

    Args:
        own: tokens of the run's services, good for every method.
        clients: tokens that are good for `CLIENT_METHODS`.
    """

    @contextlib.asynccontextmanager
    async def guard(method: Method, context: Context) -> AsyncIterator[None]:
        if method.service not in OPEN_SERVICES:
            sent = sent_authorization(context)
            if not sent:
                raise Unauthenticated("a bearer token is needed", reason="TOKEN_MISSING")
            if not own.accepts(sent):
                if clients is None or not clients.accepts(sent):
                    raise Unauthenticated("the bearer token is wrong", reason="TOKEN_WRONG")
                if method.name not in CLIENT_METHODS.get(method.service, ()):
                    raise PermissionDenied(
                        f"a client's token isn't good for {method.name}", reason="SERVICES_ONLY"
                    )
        yield

    return guard
