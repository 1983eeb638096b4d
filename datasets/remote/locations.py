"""Where data lies: a folder of this machine, or an address; how addresses are joined, and how they are shown to people.

No message or log may hold a password or a signature, so whatever mentions an address shows `shown(address)`.
"""

import os
import re
import urllib.parse
from pathlib import Path

from ...cli.errors import UserError

HTTP = frozenset({"http", "https"})

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")
_IN_TEXT = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://[^\s'\"<>]+")
_SECRETS = ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_ACCESS_KEY_ID")
_REMEDY = {
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE or the machine's role (FSSPEC_S3_ANON=true for a public bucket)",
    "gs": "set GOOGLE_APPLICATION_CREDENTIALS or the machine's service account",
    "gcs": "set GOOGLE_APPLICATION_CREDENTIALS or the machine's service account",
    "http": "give a pre-signed address",
    "https": "give a pre-signed address",
}


def scheme_of(location: Path | str) -> str:
    """Returns the scheme of an address in small letters; empty for a folder of this machine, also in the form `file://`."""
    found = _SCHEME.match(location) if isinstance(location, str) else None
    scheme = found[1].lower() if found else ""
    return "" if scheme in ("file", "local") else scheme


def is_remote(location: Path | str) -> bool:
    """Whether data there comes over a network."""
    return bool(scheme_of(location))


def local_path(location: Path | str) -> Path:
    """Returns the path of a location that is not remote."""
    if isinstance(location, str) and (found := _SCHEME.match(location)):
        return Path(urllib.parse.unquote(location[found.end() :]))
    return Path(location)


def check_address(address: str) -> None:
    """Refuses an address that carries credentials, or a query where it would mean nothing; a pre-signed http address is taken.

    Raises:
        UserError: with the remedy; what is refused is not shown.
    """
    scheme = scheme_of(address)
    _, at, query = _parts(address)
    if at:
        raise UserError(f"{shown(address)}: credentials do not belong in an address; {credentials_remedy(scheme)}")
    if query and scheme not in HTTP:
        raise UserError(f"{shown(address)}: only http(s) addresses have a query (?…); leave it out")


def credentials_remedy(scheme: str) -> str:
    """Returns how credentials are given for addresses of a scheme."""
    return _REMEDY.get(scheme, "give them by the environment or the configuration files of its client")


def join(address: str, name: str) -> str:
    """Returns the address of the file `name` in the folder at `address`; a query (a signature) stays at the end."""
    if scheme_of(address) not in HTTP:
        return f"{address.rstrip('/')}/{name}"
    parts = urllib.parse.urlsplit(address)
    path = f"{parts.path.rstrip('/')}/{urllib.parse.quote(os.fsencode(name))}"
    return urllib.parse.urlunsplit((parts.scheme, parts.netloc, path, parts.query, ""))


def shown(address: str) -> str:
    """Returns an address without user, password, query and signature; `?…` says that there was a query."""
    found = _SCHEME.match(address)
    if found is None:
        return address
    place, _, query = _parts(address)
    return f"{found[0]}{place}{'?…' if query else ''}"


def redacted(text: str) -> str:
    """Returns a text of others (an exception's, say) with its addresses as `shown` and without the keys of the environment."""
    text = _IN_TEXT.sub(lambda found: shown(found[0]), text)
    for name in _SECRETS:
        if secret := os.environ.get(name):
            text = text.replace(secret, "…") if len(secret) >= 8 else text
    return text


def _parts(address: str) -> tuple[str, bool, str]:
    """Returns (host and path, whether there are credentials, query); a key with / or ? in it, not escaped, is seen as one too."""
    rest = address.partition("://")[2]
    place, _, query = rest.partition("?")
    authority = place.partition("/")[0]
    names_user = "@" in authority or bool(re.search(r":(?!\d*$)", authority.rpartition("]")[2]))
    if not names_user:
        return place.partition("#")[0], False, query
    host = place.rpartition("@")[2] if "@" in place else "…"
    return host.partition("#")[0], True, query
