"""What can go wrong in a trial, beside what it is there to find."""

from libs.errors import BatonError


class TrialFailed(BatonError):
    """The trial could not be carried through."""

    reason = "TRIAL_FAILED"
