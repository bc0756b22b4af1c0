"""A server process for test_rpc_server: prints a line at each stage of its life.

    python drained_server.py ADDRESS_FILE DRAIN_SECONDS STAGE

STAGE: "serve", "load" (never gets beyond loading), "stuck" (its drain never ends).
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from tests.integration.rpc.servicers import POLICY, EchoPolicy
from vlarl.config.network import ServerConfig
from vlarl.policy.v1 import policy_pb2_grpc
from vlarl.rpc.server import RpcServer


async def main(address_file: Path, drain_seconds: float, stage: str) -> None:
    config = ServerConfig(
        address_file=address_file,
        metrics_listen="127.0.0.1:0",
        metrics_address_file=address_file.with_suffix(".metrics"),
        drain_seconds=drain_seconds,
    )
    server = RpcServer(config, [POLICY])
    policy_pb2_grpc.add_PolicyServiceServicer_to_server(EchoPolicy(), server.grpc)
    await server.start()
    try:
        if stage == "load":
            print("loading", flush=True)
            await asyncio.Event().wait()
        server.set_serving(True)
        print("serving", flush=True)

        async def drain() -> None:
            print("draining", flush=True)
            if stage == "stuck":
                await asyncio.Event().wait()

        await server.serve_until_terminated(drain)
        print("drained", flush=True)
    finally:
        await server.stop()
        print("cleaned up", flush=True)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), float(sys.argv[2]), sys.argv[3]))
