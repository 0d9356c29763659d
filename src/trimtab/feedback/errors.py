"""What a person or a client of the feedback store did that cannot be done; ``status`` is the HTTP status that says so.

    UserError
    ├── StoreError           the store cannot be opened: its path, its lock, its version; exit code 2
    └── FeedbackError        a request that is refused; one sentence
        ├── MissingError     404  it is not in this project
        ├── ConflictError    409  something else has happened meanwhile, or is still happening
        ├── KeyReusedError   422  an idempotency key with another body
        ├── DeniedError      403  the role does not allow it
        ├── CredentialsError 401  a wrong name, password, session or token
        └── LockedOutError   429  too many wrong passwords; ``retry_after`` in seconds

Bad content of a verdict is a ``DataError`` (422), as it is in a file.
"""

from __future__ import annotations

from trimtab.errors import UserError


class StoreError(UserError):
    """The feedback store cannot be opened or is not one."""


class FeedbackError(UserError):
    """A request to the feedback store is refused."""

    status = 400


class MissingError(FeedbackError):
    """What is asked for is not in this project."""

    status = 404


class ConflictError(FeedbackError):
    """Something else has happened meanwhile, or is happening now."""

    status = 409


class KeyReusedError(FeedbackError):
    """An idempotency key came back with another body."""

    status = 422


class DeniedError(FeedbackError):
    """The person's role does not allow this."""

    status = 403


class CredentialsError(FeedbackError):
    """A name, password, session or token is wrong; which of them is not said."""

    status = 401


class LockedOutError(FeedbackError):
    """Too many wrong passwords."""

    status = 429

    def __init__(self, retry_after: float) -> None:
        super().__init__(f"too many wrong passwords: try again in {retry_after:.0f} seconds")
        self.retry_after = retry_after
