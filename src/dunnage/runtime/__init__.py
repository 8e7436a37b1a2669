"""An OCI runtime's command line as Python: arguments and failures decide, client and console act.

Any runtime that takes runc's arguments will do. What was seen to differ (crun) is handled in ``failures``.
"""
