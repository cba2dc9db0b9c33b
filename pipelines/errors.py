"""The exceptions that a program prints as one line instead of a traceback."""


class UserError(ValueError):
    """An error that the user can fix (exit code 2). It names the value, the rule and a remedy."""


class JobFailed(RuntimeError):  # noqa: N818 - not an error of the program
    """The work failed for a known reason (exit code 1). It says what remains and what to do."""


class Stopped(JobFailed):
    """The work stopped early and can resume (exit code 75)."""


class Terminated(KeyboardInterrupt):
    """The driver received SIGTERM. It is handled like Ctrl-C but ends with exit code 75."""
