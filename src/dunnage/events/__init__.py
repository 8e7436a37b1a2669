"""A task's events: which topic each has, and their way to containerd, in order."""
