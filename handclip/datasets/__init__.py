"""Data sets of hand photographs: manifests, splits, images."""
