"""The few system calls and kernel files that the standard library lacks. Knows nothing of containers."""
