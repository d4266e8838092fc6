"""The tracker inside other people's training loops: `rwclib.callbacks.lightning` and `rwclib.callbacks.transformers`.

Each imports its framework when it is imported itself; the extra `rwclib[callbacks]` installs both.
"""
