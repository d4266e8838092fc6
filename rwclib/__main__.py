"""`python -m rwclib` is the command `rwc`."""

from rwclib.app.cli import main

main()
