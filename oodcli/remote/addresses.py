"""Addresses of remote files, and the credentials in them.

An address is ``https://HOST/PATH``, ``http://HOST/PATH``, ``s3://BUCKET/KEY``, ``gs://BUCKET/KEY``
or ``hf://datasets/OWNER/NAME/PATH``. User, password and query (``?X-Amz-Signature=…``) of a web
address are credentials: :func:`without_credentials` takes them out of a text as soon as it is
given, and holds them in this process. Everything else in the package has addresses without them,
so that no message, key or stored record can show one; only :func:`complete` puts them back, for a
request.
"""

import re
from collections.abc import Mapping
from urllib.parse import quote

from oodcli.errors import InvalidInputError
from oodcli.text import printable

WEB = ("http", "https")
# What reads each scheme, as it is called on PyPI.
PACKAGES: Mapping[str, tuple[str, ...]] = {
    "http": ("fsspec", "aiohttp"),
    "https": ("fsspec", "aiohttp"),
    "s3": ("fsspec", "s3fs"),
    "gs": ("fsspec", "gcsfs"),
    "hf": ("fsspec", "huggingface_hub"),
}

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):/")
_ANY_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
# An address ends where columns or the next part of a data set begin.
_END = r"(?=$|:(?:path|label|split|image)=|,(?:train|val|test)=)"
_WEB_ADDRESS = re.compile(
    rf"(?P<scheme>https?)://(?P<user>[^/?#\s]*@)?(?P<host>[^/?#]*?)(?P<path>(?:/[^?#]*?)?)"
    rf"(?P<rest>[?#].*?)?{_END}",
    re.DOTALL | re.IGNORECASE,
)
# In texts of libraries, where an address ends with a blank or a quotation mark.
_SHOWN_USER = re.compile(r"(?P<scheme>\b[A-Za-z][A-Za-z0-9+.-]*://)[^/\s'\"@]*@")
_SHOWN_QUERY = re.compile(r"(?P<address>\b[A-Za-z][A-Za-z0-9+.-]*://[^\s'\"?#]*)[?#][^\s'\")]*")
_SAFE = "/%:@!$&'()*+,;=~-._"

# Credentials of this process: user and password by server, and queries by address or by folder.
_users: dict[str, str] = {}
_queries: dict[str, str] = {}


def is_address(text: str) -> bool:
    """Return whether a text is the address of something remote, with or without a known scheme.

    Examples
    --------
    >>> is_address("s3://photos/a.tar"), is_address("photos/a.tar"), is_address("ftp://host/a.tar")
    (True, False, True)
    """
    found = _SCHEME.match(text)
    known = found is not None and found[1].lower() in PACKAGES
    return known or bool(_ANY_SCHEME.match(text))


def without_credentials(text: str) -> str:
    """Return a text without the credentials of the web addresses in it, which are held for them.

    Parameters
    ----------
    text
        An address, or what is written around some, as ``NAME=ADDRESS:label=COLUMN``.

    Examples
    --------
    >>> without_credentials("fog=https://ann:secret@host.org/a.zip?X-Amz-Signature=12ab")
    'fog=https://host.org/a.zip'
    >>> without_credentials("photos/a.zip")
    'photos/a.zip'
    """
    return _WEB_ADDRESS.sub(_held, text) if "://" in text else text


def _held(found: re.Match[str]) -> str:
    """Hold the credentials of an address, and return it without them."""
    server = f"{found['scheme'].lower()}://{found['host']}"
    address = server + found["path"]
    if found["user"]:
        _users[server] = found["user"][:-1]
    query = (found["rest"] or "").partition("#")[0]
    if len(query) > 1:
        _queries[address] = query
        # The files that a list or a pattern in this folder names are read with it, too.
        _queries[f"{address.rpartition('/')[0]}/"] = query
    return address


def credentials() -> tuple[dict[str, str], dict[str, str]]:
    """Return all credentials of this process, for its own worker processes alone."""
    return dict(_users), dict(_queries)


def hold(users: Mapping[str, str], queries: Mapping[str, str]) -> None:
    """Take over the credentials of the process that started this one."""
    _users.update(users)
    _queries.update(queries)


def complete(address: str) -> str:
    """Return an address as it is requested: with its credentials, and encoded.

    Parameters
    ----------
    address
        An address without credentials.
    """
    scheme, _, rest = address.partition("://")
    if scheme not in WEB:
        return address
    host, slash, path = rest.partition("/")
    server = f"{scheme}://{host}"
    user = _users.get(server)
    login = f"{scheme}://{user}@{host}" if user else server
    return f"{login}{slash}{quote(path, safe=_SAFE)}{_query_of(address)}"


def _query_of(address: str) -> str:
    if address in _queries:
        return _queries[address]
    folder = address
    while folder.count("/") > 2:
        folder = folder.rpartition("/")[0]
        if f"{folder}/" in _queries:
            return _queries[f"{folder}/"]
    return ""


def redacted(text: str) -> str:
    """Return a text of a library in one line, without any credentials of addresses in it."""
    shown = _SHOWN_USER.sub(r"\g<scheme>", " ".join(text.split()))
    return printable(_SHOWN_QUERY.sub(r"\g<address>", shown))


def checked(text: str) -> str:
    """Return an address as it is written: without credentials, the scheme in lower case.

    Parameters
    ----------
    text
        The address; one slash behind the scheme, as paths have it, is as good as two.

    Raises
    ------
    InvalidInputError
        If the scheme is unknown, the server or bucket is missing, or a part is ``..`` or empty.
    """
    whole = without_credentials(text)
    scheme, _, rest = whole.partition(":")
    scheme, rest = scheme.lower(), rest.removeprefix("/").removeprefix("/")
    shown = redacted(f"{scheme}://{rest}")
    if scheme not in PACKAGES:
        known = ", ".join(f"{each}://" for each in PACKAGES)
        raise InvalidInputError(f"cannot read {shown}: the schemes that are read are {known}")
    if scheme not in WEB and "@" in rest.partition("/")[0]:
        raise InvalidInputError(
            f"{shown} has credentials in its address; give them by environment variables: "
            "ood help data"
        )
    host, *parts = rest.rstrip("/").split("/")
    if not host or not host.isprintable() or " " in host or not rest.isprintable():
        what = "HOST/FILE" if scheme in WEB else "BUCKET/FILE"
        raise InvalidInputError(f"{shown} is no address; write {scheme}://{what}")
    port = host.rpartition(":")[2] if ":" in host.rpartition("]")[2] else "0"
    if scheme in WEB and not (port.isdecimal() and int(port) < 65_536):
        raise InvalidInputError(f"{shown} has no valid port: {printable(port)}")
    if any(part in ("", ".", "..") for part in parts):
        raise InvalidInputError(f"{shown} has an empty part, or one that is . or ..; leave it out")
    return "/".join([f"{scheme}://{host}", *parts])
