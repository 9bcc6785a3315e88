"""Benchmarks: ratios against plain Celery, in one run. `make bench` runs them."""
