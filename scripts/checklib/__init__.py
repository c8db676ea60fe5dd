"""Shared by scripts that check results: compiling in memory, worker processes that may crash, ONNX's node tests."""
