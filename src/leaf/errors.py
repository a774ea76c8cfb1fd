"""The exceptions that the command line prints as one line."""


class LeafError(ValueError):
    """A mistake in the input: the message says what arrived, what was expected and the fix, in one line.

    Exit code 2.
    """


class Halt(LeafError):
    """Whatever else there is to do could not be done either, until somebody acts: an account or a disk is at its end,
    or a model has changed. Who goes on after a `LeafError` about one part of the work does not go on after this.
    """


class Stopped(BaseException):
    """The work was asked to stop (SIGTERM) and has saved where it stands: the same command goes on.

    Exit code 0. It may be raised anywhere, so it is no `Exception`: what those say of a file would be wrong of this.
    """


def first_line(error: BaseException) -> str:
    """What an error says, in one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
