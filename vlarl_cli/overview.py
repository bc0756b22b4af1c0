"""Where a run stands and who of its services answers, asked of all of them at once."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path

import grpc
from redis.exceptions import RedisError

from vlarl.config import ConfigError, QueueConfig, RunConfig
from vlarl.policy.v1 import policy_pb2, policy_pb2_grpc
from vlarl.queue.backlog import Backlog, backlog
from vlarl.queue.rollout_queue import QueueError, RolloutQueue
from vlarl.reward.v1 import reward_pb2, reward_pb2_grpc
from vlarl.rpc.channel import open_channel, replica_addresses, wait_until_serving
from vlarl.rpc.errors import describe
from vlarl.trainer.v1 import trainer_pb2, trainer_pb2_grpc

_PATIENCE_SECONDS = 3.0


@dataclass(frozen=True)
class Addresses:
    """Where a run's parts are."""

    services: tuple[tuple[str, str], ...]
    """(service, HOST:PORT), a pair a replica."""
    queue_url: str


@dataclass(frozen=True)
class Replica:
    """One server."""

    service: str
    address: str
    serving: bool
    says: str
    """What it has to say of itself, or why it doesn't answer."""


@dataclass(frozen=True)
class Overview:
    """A run at a glance."""

    run: trainer_pb2.GetStatusResponse | None
    """None: the trainer doesn't answer."""
    replicas: tuple[Replica, ...]
    queue: Backlog | None
    """None: it doesn't answer, and `queue_error` says why."""
    queue_error: str = ""

    @property
    def well(self) -> bool:
        """Whether everything answers."""
        return self.queue is not None and all(replica.serving for replica in self.replicas)


def addresses_of_run(run_dir: Path) -> Addresses:
    """Where `vlarl up` wrote down that a run's services listen.

    Raises:
        ConfigError: it was never started there.
    """
    path = run_dir / "addresses.txt"
    if not path.exists():
        raise ConfigError(
            f"{run_dir}: no run that `vlarl up` started (addresses.txt is missing); of services "
            "elsewhere, give their configuration with --config"
        )
    lines = [line.split() for line in path.read_text(encoding="utf-8").splitlines()]
    (queue_url,) = [line[1] for line in lines if line[0] == "queue"]
    services = tuple((line[0], line[1]) for line in lines if line[0] != "queue")
    return Addresses(services, queue_url)


def addresses_of_config(config: RunConfig) -> Addresses:
    """Those that a configuration knows: env and reward servers come to the queue by themselves.

    Raises:
        OSError: a name can't be resolved.
    """
    policies = replica_addresses(config.policy.addresses)
    services = [("policy", address) for address in policies]
    return Addresses((*services, ("trainer", config.trainer.address)), config.queue.url)


async def look(addresses: Addresses, config: RunConfig) -> Overview:
    """Asks everyone; who hasn't answered within seconds counts as gone."""
    asked = [_replica(service, address, config) for service, address in addresses.services]
    queue = config.queue.model_copy(update={"url": addresses.queue_url})
    (found, error), answers = await asyncio.gather(_backlog(queue), asyncio.gather(*asked))
    runs = [run for _, run in answers if run is not None]
    return Overview(
        run=runs[0] if runs else None,
        replicas=tuple(replica for replica, _ in answers),
        queue=found,
        queue_error=error,
    )


async def _replica(
    service: str, address: str, config: RunConfig
) -> tuple[Replica, trainer_pb2.GetStatusResponse | None]:
    channel_config = config.security.channel(timeout_seconds=_PATIENCE_SECONDS)
    run = None
    async with open_channel(address, channel_config) as channel:
        try:
            await wait_until_serving(channel, "", _PATIENCE_SECONDS)
            if service == "trainer":
                trainer = trainer_pb2_grpc.TrainerServiceStub(channel)
                run = await trainer.GetStatus(trainer_pb2.GetStatusRequest())
            says = await _says(service, channel)
        except TimeoutError as error:
            return Replica(service, address, False, str(error)), None
        except grpc.RpcError as error:
            return Replica(service, address, False, describe(error)), None
    return Replica(service, address, True, says), run


async def _says(service: str, channel: grpc.aio.Channel) -> str:
    if service == "policy":
        stub = policy_pb2_grpc.PolicyServiceStub(channel)
        policy = await stub.GetPolicy(policy_pb2.GetPolicyRequest())
        return f"{policy.model}, version {policy.policy_version}"
    if service == "reward":
        judge = reward_pb2_grpc.RewardServiceStub(channel)
        model = await judge.GetRewardModel(reward_pb2.GetRewardModelRequest())
        return f"{model.model} {model.version}".strip()
    return ""


async def _backlog(config: QueueConfig) -> tuple[Backlog | None, str]:
    """What lies in the queue, or None and why not."""
    try:
        async with asyncio.timeout(_PATIENCE_SECONDS), RolloutQueue(config, retries=0) as queue:
            return await backlog(queue), ""
    except (QueueError, RedisError, OSError) as error:
        return None, str(error) or "no answer"
