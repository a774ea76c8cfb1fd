"""The one exception that means "the caller can fix this"; the command line prints it as one line and exits with 2."""


class LeafError(ValueError):
    """A mistake in the input: the message says what arrived, what was expected and the fix, in one line."""
