"""The dense remainder on x86: everything around the sparse layers, one operator per file."""
