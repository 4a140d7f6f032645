"""The trainers' fixtures: tiny data, and results of each test apart."""

from __future__ import annotations

from trainers.conftest import environment, planned, workspace

__all__ = ["environment", "planned", "workspace"]
