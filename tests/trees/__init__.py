"""Tiny downloads in the exact layout of each data set, one module a data set, for tests of both ends."""
