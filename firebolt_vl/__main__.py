"""`python -m firebolt_vl` is the `firebolt` command."""

from .cli import main

main()
