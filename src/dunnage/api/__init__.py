"""The messages on the wire: generated classes, a module for each .proto here; `scripts/generate-api` makes them."""
