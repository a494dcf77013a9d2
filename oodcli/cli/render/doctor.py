"""The report of ``ood doctor``."""

from typing import TYPE_CHECKING

from oodcli.cli.options import Format
from oodcli.cli.render.formats import Cell, Column, Table, human_bytes, write_table

if TYPE_CHECKING:
    from oodcli.workflows.doctor import Diagnosis


def render_diagnosis(found: "Diagnosis", how: Format) -> str:
    """Render the report of ``ood doctor``."""
    return write_table(_table(found), how, json_content=found.to_json())


def _table(found: "Diagnosis") -> Table:
    """Return a report as a table of items and values, in sections."""
    rows: list[dict[str, Cell]] = []
    sections: set[int] = set()

    def line(what: str, how: str) -> None:
        rows.append({"what": Cell(what), "how": Cell(how)})

    def rule() -> None:
        sections.add(len(rows) - 1)

    for name, version in found.versions.items():
        line(name, version or "not installed")
    line("system", found.system)
    line("interpreter", found.python)
    rule()
    for extra, packages in found.extras.items():
        present = [f"{name} {version}" for name, version in packages.items() if version]
        line(f"extra {extra}", ", ".join(present) or "not installed")
    rule()
    for device in found.devices:
        memory = "" if device.memory_bytes is None else f", {human_bytes(device.memory_bytes)}"
        line(device.name, f"{device.description}{memory}")
    rule()
    state = found.store
    if state is None:
        line("store", "cannot be opened")
    else:
        access = "writable" if state.writable else "not writable"
        line("store", f"{state.path} ({access if state.exists else f'does not exist, {access}'})")
        free = "unknown" if state.free_bytes is None else human_bytes(state.free_bytes)
        line("free space", free)
        line(
            "runs",
            f"{state.finished} finished, {state.unfinished} unfinished, "
            f"{len(state.damaged)} damaged",
        )
        for name, size in state.usage.items():
            line(f"size of {name}", human_bytes(size))
    rule()
    for test in found.self_tests:
        outcome = "passed" if test.passed else "failed"
        line(f"self-test on {test.device}", f"{outcome} in {test.seconds:.1f} s")
    if not found.self_tests:
        line("self-test", "not run, since torch cannot be imported")
    notes = [f"problem: {problem}" for problem in found.problems]
    notes += list(found.remarks)
    return Table(
        title=("ood doctor: " + ("no problems found" if found.healthy else "problems found"),),
        columns=(Column("what", "Item"), Column("how", "Value")),
        rows=rows,
        sections=frozenset(sections),
        notes=notes,
    )
