"""Containers and their processes: what they allow when, in which order exits are told, what a bundle holds."""
