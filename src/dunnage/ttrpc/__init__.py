"""ttrpc, containerd's small RPC over unix sockets: frames, streams and connection are pure, server and client act.

It knows nothing of containers. The rules come from ttrpc's PROTOCOL.md and from the behaviour of its Go implementation.
"""
