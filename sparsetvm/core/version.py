"""The version of this code; also where nothing is installed, as in a checkout on PYTHONPATH."""

VERSION = "0.1.0"
