"""Addresses are checked, and credentials in them are in no text but that of a request."""

import pytest

from oodcli.errors import InvalidInputError
from oodcli.remote import addresses
from oodcli.remote.addresses import checked, complete, is_address, redacted, without_credentials


@pytest.fixture(autouse=True)
def no_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(addresses, "_users", {})
    monkeypatch.setattr(addresses, "_queries", {})


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("https://h/a.zip", "https://h/a.zip"),
        ("https://ann:s3cret@h/a.zip", "https://h/a.zip"),
        ("fog=HTTPS://ann:s3cret@h:80/a.csv?s=s3cret:label=kind", "fog=https://h:80/a.csv:label=kind"),
        ("train=https://h/a.csv?s3cret,test=https://h/b.csv?k=s3cret",
         "train=https://h/a.csv,test=https://h/b.csv"),
        ("--ood=https://h/s-{000..009}.tar?sig=s3cret#part", "--ood=https://h/s-{000..009}.tar"),
        ("s3://bucket/what?.tar", "s3://bucket/what?.tar"),
        ("folder/a.csv:label=kind", "folder/a.csv:label=kind"),
    ],
)  # fmt: skip
def test_no_credentials_are_left_in_a_text(given: str, shown: str) -> None:
    assert without_credentials(given) == shown
    assert without_credentials(shown) == shown


def test_requests_have_the_credentials_again() -> None:
    without_credentials("https://ann:s3cret@h/a/list.csv?sig=x%2Fy")
    assert complete("https://h/a/list.csv") == "https://ann:s3cret@h/a/list.csv?sig=x%2Fy"
    # What a list names below its folder, and nothing elsewhere.
    assert complete("https://h/a/b/1 é.png") == "https://ann:s3cret@h/a/b/1%20%C3%A9.png?sig=x%2Fy"
    assert complete("https://h/c.png") == "https://ann:s3cret@h/c.png"
    assert complete("https://other/a/b.png") == "https://other/a/b.png"
    without_credentials("https://h/a/b.zip?sig=own")
    assert complete("https://h/a/b.zip") == "https://ann:s3cret@h/a/b.zip?sig=own"


def test_messages_of_libraries_are_shown_without_credentials() -> None:
    said = "403, url='https://ann:s3cret@h/a.zip?X-Amz-Signature=s3cret'\n at https://h/b?k=s3cret"
    assert redacted(said) == "403, url='https://h/a.zip' at https://h/b"


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ("ftp://ann:s3cret@h/a.zip", "cannot read ftp://h/a.zip: the schemes that are read are "
         "http://, https://, s3://, gs://, hf://"),
        ("https:///a.zip", "https:///a.zip is no address; write https://HOST/FILE"),
        ("s3://", "s3:// is no address; write s3://BUCKET/FILE"),
        ("s3://key:s3cret@bucket/a.zip", "s3://bucket/a.zip has credentials in its address; give "
         "them by environment variables: ood help data"),
        ("https://h:99999/a.zip", "https://h:99999/a.zip has no valid port: 99999"),
        ("https://h/a/../b.zip", "https://h/a/../b.zip has an empty part, or one that is . or ..; "
         "leave it out"),
        ("s3://b/a//b.zip", "s3://b/a//b.zip has an empty part, or one that is . or ..; leave it "
         "out"),
        ("https://h/a\nb.zip", "https://h/a b.zip is no address; write https://HOST/FILE"),
    ],
)  # fmt: skip
def test_addresses_that_cannot_be_are_refused_in_a_line(given: str, line: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        checked(given)
    assert str(caught.value) == line


def test_paths_that_lost_a_slash_are_addresses() -> None:
    assert is_address("https:/h/a.zip")
    assert checked("https:/h/a.zip") == "https://h/a.zip"
    assert checked("S3://B/a.zip/") == "s3://B/a.zip"
    assert not is_address("C:/photos")
