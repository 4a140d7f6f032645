"""Experiment planners: the search for patch and batch size once, and one small file a method."""
