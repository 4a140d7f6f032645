"""Losses on features: torch only."""
