"""`python -m flowstone.cli`: the same as the command `flowstone`."""

from flowstone.cli import main

main()
