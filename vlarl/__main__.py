"""`python -m vlarl` is the same as `vlarl`."""

import sys

import vlarl

# `python -m`, and with it each of torchrun's ranks, looks for modules in the working folder first.
# What lies there isn't ours to import, unless this package does.
if not sys.flags.safe_path and not vlarl.__file__.startswith(f"{sys.path[0]}/"):
    del sys.path[0]

from importlib import import_module

# By its name: the library doesn't depend on the command. Not by its entry point, which is missing
# where the project lies on PYTHONPATH and isn't installed.
import_module("vlarl_cli").main()
