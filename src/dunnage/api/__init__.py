"""The messages on the wire: generated classes, one module for each .proto beside it; `scripts/generate-api` makes them."""
