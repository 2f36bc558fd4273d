"""Figures that perfkit promises, measured: `make bench`, or `python -m benchmarks NAME` for one."""
