"""Wires a worker together: launchers' requests, listeners, groups, log drivers, recovery, idle exit, state dump."""
