"""`python -m sparsetvm` is `sparsetvm`."""

from sparsetvm.cli.main import main

main()
