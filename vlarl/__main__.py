"""`python -m vlarl` is the same as `vlarl`."""

import sys

import vlarl

# `python -m`, and with it each of torchrun's ranks, looks for modules in the working folder first.
# What lies there isn't ours to import, unless this package does.
if not sys.flags.safe_path and not vlarl.__file__.startswith(f"{sys.path[0]}/"):
    del sys.path[0]

from importlib.metadata import entry_points

(command,) = entry_points(group="console_scripts", name="vlarl")
command.load()()
