"""`python -m vlarl` is the same as `vlarl`."""

from vlarl.cli import main

main()
