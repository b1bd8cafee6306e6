"""Benchmarks: the same seeded work on raw py-lmdb, on this store over each of its engines, and on SQLite.

Not a part of the installed package. `README.md` says what is measured and how it is kept fair.
"""
