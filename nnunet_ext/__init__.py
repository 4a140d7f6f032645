"""The version, nothing else: this module is imported at every interpreter start."""

__version__ = "0.1.0"
