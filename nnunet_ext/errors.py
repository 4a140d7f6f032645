"""Errors that the command line answers with one sentence instead of a traceback."""

from __future__ import annotations


class UserError(Exception):
    """Something the user can put right; the message says what was found and what to do."""


class UnsupportedNnunetError(RuntimeError):
    """The installed nnunetv2 is outside the tested range; the message says which is needed and how to get it."""


class NameNotFoundError(RuntimeError):
    """What nnU-Net's commands end with for a name like ours that is none; the message spells it."""
