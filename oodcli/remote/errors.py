"""What goes wrong with remote files, and how it is said in one line without credentials."""

import errno
from enum import Enum

from oodcli.errors import DownloadError
from oodcli.remote.addresses import redacted


class Kind(Enum):
    """What a failure is about."""

    MISSING = "there is no such file"
    REFUSED = "access is refused"
    BROKEN = "the server did not send all of it"
    CHANGED = "the file has changed"
    UNREACHABLE = "the server does not answer"
    OTHER = "it cannot be read"


_CURES = {
    Kind.MISSING: "check the address",
    Kind.REFUSED: "give credentials that may read it: ood help data",
    Kind.BROKEN: "run the same command again, which resumes",
    Kind.CHANGED: "run the same command again",
    Kind.UNREACHABLE: "check the address and the network, and run the same command again, which "
    "resumes",
    Kind.OTHER: "check the address",
}


class RemoteError(DownloadError):
    """A remote file that cannot be read.

    Parameters
    ----------
    address
        Its address, without credentials.
    kind
        What it is about.
    reason
        What the server or a library said.
    cure
        What the user can do.
    """

    def __init__(self, address: str, kind: Kind, reason: str, cure: str = "") -> None:
        self.cure = cure or _CURES[kind]
        super().__init__(f"cannot read {address}: {reason}; {self.cure}")
        self.address = address
        self.kind = kind
        self.reason = reason

    @property
    def passing(self) -> bool:
        """Whether another try may succeed."""
        return self.kind in (Kind.BROKEN, Kind.UNREACHABLE)

    @property
    def is_of_file(self) -> bool:
        """Whether it is about this one file, not about its server."""
        return self.kind in (Kind.MISSING, Kind.REFUSED, Kind.BROKEN)

    def as_os_error(self) -> OSError:
        """Return it as the error that a missing file of the disk gives."""
        return FileNotFoundError(errno.ENOENT, "it does not exist", self.address)

    def __reduce__(self) -> tuple[object, ...]:
        return RemoteError, (self.address, self.kind, self.reason, self.cure)


_STATUSES = {401: Kind.REFUSED, 403: Kind.REFUSED, 404: Kind.MISSING, 410: Kind.MISSING}
_AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})
# By the names of classes of aiohttp, botocore and requests, none of which need be there.
_NAMES = {
    Kind.REFUSED: ("NoCredentialsError", "PartialCredentialsError", "TokenRetrievalError",
                   "GatedRepoError", "DefaultCredentialsError"),
    Kind.MISSING: ("RepositoryNotFoundError", "RevisionNotFoundError", "EntryNotFoundError"),
    Kind.UNREACHABLE: ("ClientConnectorError", "EndpointConnectionError", "ConnectTimeoutError",
                       "ReadTimeoutError", "ConnectTimeout", "ConnectError", "FSTimeoutError",
                       "OfflineModeIsEnabled", "LocalEntryNotFoundError"),
    Kind.BROKEN: ("ClientPayloadError", "ServerDisconnectedError", "ClientOSError",
                  "IncompleteRead", "ResponseStreamingError", "RemoteProtocolError",
                  "ConnectionClosedError", "ChunkedEncodingError"),
}  # fmt: skip


def of_status(address: str, status: int, reason: str | None) -> RemoteError:
    """Return the error of an HTTP status.

    Parameters
    ----------
    address
        Of the file.
    status, reason
        What the server answered.
    """
    kind = Kind.BROKEN if status in _AGAIN else _STATUSES.get(status, Kind.OTHER)
    said = f"{status} {redacted(reason or '')[:80]}".strip()
    return RemoteError(address, kind, f"the server answers {said}")


def of_exception(address: str, error: BaseException) -> RemoteError:
    """Return the error of an exception of a library.

    Parameters
    ----------
    address
        Of the file.
    error
        The exception.
    """
    if isinstance(error, RemoteError):
        return error
    status = getattr(error, "status", None) or getattr(error, "code", None)
    if isinstance(status, int) and 400 <= status < 600:
        return of_status(address, status, getattr(error, "message", None))
    names = {each.__name__ for each in type(error).__mro__}
    kind = next((kind for kind, known in _NAMES.items() if names & set(known)), None)
    if kind is None and isinstance(error, FileNotFoundError):
        kind = Kind.MISSING
    if kind is None and isinstance(error, PermissionError):
        kind = Kind.REFUSED
    if kind is None and isinstance(error, (TimeoutError, ConnectionError)):
        kind = Kind.UNREACHABLE if isinstance(error, TimeoutError) else Kind.BROKEN
    kind = kind or Kind.OTHER
    said = redacted(str(error))[:200]
    if isinstance(error, TimeoutError) and not said:
        said = "the server sent nothing in time"
    if kind is Kind.MISSING:
        said = "it does not exist"
    return RemoteError(address, kind, said or type(error).__name__)
