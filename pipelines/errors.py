"""The exceptions that a program prints as one line instead of a traceback."""


class UserError(ValueError):
    """Something the user can mend (exit code 2): names the value, the rule and a way out."""


class JobFailed(RuntimeError):  # noqa: N818 - what it says is not an error of the program
    """The work failed for a known reason (exit code 1): says what is left and what to do."""


class Stopped(JobFailed):
    """The work stopped before its end, and everything is there to go on (exit code 75)."""


class Terminated(KeyboardInterrupt):
    """SIGTERM at the driver, which is handled as Ctrl-C is but ends with exit code 75."""
