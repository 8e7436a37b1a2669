"""Wires a worker together: launchers' requests, listeners, groups, recovery, idle exit, watchdog."""
