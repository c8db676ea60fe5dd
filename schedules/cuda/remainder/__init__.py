"""The dense remainder on CUDA: everything around the sparse layers, one operator per file."""
