"""Errors of a trial itself, as opposed to its findings."""

from libs.errors import BatonError


class TrialFailed(BatonError):
    """The trial could not be completed."""

    reason = "TRIAL_FAILED"
