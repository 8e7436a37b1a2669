"""dunnage: containerd's runc shim in Python, one small process for a whole node."""

__version__ = "0.1.0"
