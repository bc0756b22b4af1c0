"""Asks the policies behind an address for actions until SIGTERM; then says how it went.

policy_load_program.py ADDRESS CALLERS
"""

import asyncio
import json
import signal
import sys
from collections import Counter

import numpy as np

from vlarl.clients.policy import AsyncPolicyClient, PolicyError

_PAUSE_SECONDS = 0.2
"""So that they load the policies and not the machine on which everything else is tested, too."""


async def main(address: str, callers: int) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    versions: Counter[int] = Counter()
    failures: list[str] = []
    frame = np.full((84, 84, 3), 90, np.uint8)

    async def ask(client: AsyncPolicyClient) -> None:
        while not stop.is_set():
            try:
                action = await client.predict(
                    frame, "open the drawer", unnorm_key="libero_spatial", temperature=1.0
                )
                versions[action.policy_version] += 1
            except PolicyError as error:
                failures.append(str(error))
            await asyncio.sleep(_PAUSE_SECONDS)

    async with AsyncPolicyClient(address) as client:
        print("asking", flush=True)
        await asyncio.gather(*(ask(client) for _ in range(callers)))
    print(json.dumps({"versions": versions, "failures": failures}), flush=True)


asyncio.run(main(sys.argv[1], int(sys.argv[2])))
