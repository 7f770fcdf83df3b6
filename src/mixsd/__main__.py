"""`python -m mixsd` is the command `mixsd`."""

from mixsd.cli import main

main()
