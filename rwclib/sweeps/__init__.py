"""Many runs: on which machines, in which order, how long, and trained again."""
