"""A request that is not answered with an embedding."""


class RefusedError(Exception):
    """Ends a request with a status of HTTP and one line for the client."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
