"""Addresses: what is remote, how they are joined, and that no secret of theirs is shown."""

from pathlib import Path

import pytest

from bamboo.cli.errors import UserError
from bamboo.datasets.remote.locations import check_address, is_remote, join, local_path, redacted, shown


@pytest.mark.parametrize(
    ("location", "remote"),
    [
        (Path("a/b"), False),
        ("a/b", False),
        ("file:///a/b%20c", False),
        ("https://host/a", True),
        ("S3://bucket/a", True),
        ("memory://a", True),
    ],
)
def test_what_is_remote(location: Path | str, remote: bool) -> None:
    """Paths, file addresses and others, against the hand-written verdict."""
    assert is_remote(location) is remote


def test_a_file_address_is_a_path() -> None:
    """`file://` with an escaped space, against the path it means."""
    assert local_path("file:///a/b%20c") == Path("/a/b c")
    assert local_path("a/b c") == Path("a/b c")


JOINED = [
    ("https://host/folder", "https://host/folder/a%20b.tar"),
    ("https://host:81/folder/?token=x%2Fy#top", "https://host:81/folder/a%20b.tar?token=x%2Fy"),
    ("s3://bucket/folder/", "s3://bucket/folder/a b.tar"),
    ("memory://folder", "memory://folder/a b.tar"),
]


@pytest.mark.parametrize(("folder", "expected"), JOINED)
def test_names_are_joined_before_the_query(folder: str, expected: str) -> None:
    """A name with a space below each kind of address, against the address by hand."""
    assert join(folder, "a b.tar") == expected


SHOWN = [
    ("https://user:pass@host:81/a/b?sig=x", "https://host:81/a/b?…"),
    ("https://host/a@b/c", "https://host/a@b/c"),
    ("https://[::1]:80/a", "https://[::1]:80/a"),
    ("s3://bucket/time=12:30/a", "s3://bucket/time=12:30/a"),
    ("s3://AKID:se/cret+key@bucket/a", "s3://bucket/a"),
    ("s3://AKID:se?cret@bucket/a", "s3://…?…"),
    ("ftp://me:top@secret@host/a", "ftp://host/a"),
]


@pytest.mark.parametrize(("address", "expected"), SHOWN)
def test_addresses_are_shown_without_secrets(address: str, expected: str) -> None:
    """Addresses with passwords, keys that hold slashes, queries and harmless signs, against the form by hand."""
    assert shown(address) == expected
    assert redacted(f"cannot open '{address}' now") == f"cannot open '{expected}' now"


def test_keys_of_the_environment_are_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """A message that repeats the secret key, as a client's may: it is gone."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMI")
    assert redacted("signing with wJalrXUtnFEMI failed") == "signing with … failed"


REFUSED = [
    ("s3://AKID:se/cret@bucket/a", "set AWS_ACCESS_KEY_ID"),
    ("gs://key@bucket/a", "GOOGLE_APPLICATION_CREDENTIALS"),
    ("https://user:secret@host/a", "pre-signed address"),
    ("ftp://me:secret@host/a", "environment"),
    ("s3://bucket/a?secret=1", "only http"),
]


@pytest.mark.parametrize(("address", "remedy"), REFUSED)
def test_credentials_in_an_address_are_refused(address: str, remedy: str) -> None:
    """Each is refused with its remedy, and without the secret in the message."""
    with pytest.raises(UserError, match=remedy) as caught:
        check_address(address)
    assert "secret" not in str(caught.value)
    assert "se/cret" not in str(caught.value)
    check_address("https://host/a?signature=1")
