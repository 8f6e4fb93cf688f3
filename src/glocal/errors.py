"""The one kind of error that is the user's to mend: what was given, what was expected, what to do."""


class GlocalError(ValueError):
    """Bad input. Its text is one line; the command line prints it alone and exits with 2."""
