"""`python -m rwclib` is the command `rwc`."""

from rwclib.cli import main

main()
