"""The command line, notebooks, report."""

import os

# Before PyTorch is loaded: a thread that waits by spinning takes the core from what it waits for.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
