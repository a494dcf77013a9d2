"""The data of the explorer: exact at every threshold, and what its scripts take it for."""

from oodcli.reporting.explorer.typescript import TARGET, interfaces


def test_the_scripts_know_the_records() -> None:
    assert TARGET.read_text(encoding="utf-8") == interfaces()
