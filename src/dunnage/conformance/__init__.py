"""Questions for any shim v2, asked over ttrpc as containerd asks them: answers, codes, texts, events, what is left.

``python -m dunnage.conformance --shim PATH`` prints a table: every case, and a mark for each shim. It needs root, runc
and a static busybox, and neither containerd nor anything of dunnage besides its ttrpc and its messages.
"""
