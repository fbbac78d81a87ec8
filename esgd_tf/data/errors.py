"""The one exception of the data room."""


class DataError(Exception):
    """Data that cannot be had or cannot be trusted.

    Its text is one sentence for the person at the command line: what was wrong, where, and what
    to do about it. Nothing is left half-made when it is raised.
    """
