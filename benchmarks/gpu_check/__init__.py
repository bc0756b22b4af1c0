"""The policy server and the whole stack on this machine's GPU, checked and measured in minutes.

    python -m benchmarks.gpu_check [--seconds 540] [--stages probe,tiny,seven,up] [--rehearse]

One command for a GPU that is at hand for a short while: from "do the libraries load?" over parity
with the original and with plain torch to speed and swaps at OpenVLA-7B's size.

probe   the libraries load, FlashAttention's numbers, compilers
tiny    servers of the golden checkpoint and of policies/reach in float32, float16 and
        bfloat16: tokens and log-probs against the original's and against plain torch on the CPU, a
        swap under load, and what outlives a killed server
seven   a server of a random model of OpenVLA-7B's size: actions a second, swaps, memory, parity
        with plain torch on the GPU
up      `vlarl up` on one task of the simulator, drawing with EGL: a few iterations of PPO; starts
        where 90 seconds are left

Every number is in OUT/results.json as soon as it is there, with OUT/report.txt for people;
OUT/logs.tar.gz has what the servers said. A stage that fails costs its own numbers only, and a
server that doesn't start is started in other ways, of which the report names the one that served.
`--rehearse` does the same on a CPU, with a small model in the large one's place: what isn't a
number of the GPU's has to come out as on one.
"""
