"""The parent of everything: fork, spawn, accept, peek, reap, store, release. No policy, no containers."""
