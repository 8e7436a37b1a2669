"""The command line: containers without containerd, and questions about a node that containerd drives."""
