"""The exceptions that the command line prints as one line."""


class LeafError(ValueError):
    """A mistake in the input: the message says what arrived, what was expected and the fix, in one line.

    Exit code 2.
    """


class Stopped(Exception):
    """The work was asked to stop (SIGTERM) and has saved where it stands: the same command goes on.

    Exit code 0.
    """
