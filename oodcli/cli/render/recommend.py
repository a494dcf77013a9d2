"""A recommendation: the candidates, the reason for the choice, and the next command."""

import shlex
from typing import TYPE_CHECKING

from oodcli.cli.options import Format
from oodcli.cli.render.formats import Cell, Column, Table, percent, write_table
from oodcli.text import counted

if TYPE_CHECKING:
    from oodcli.selection.recommendation import RatedMethod, Recommendation

_SHOWN = 12


def render_recommendation(
    found: "Recommendation", how: Format, *, every: bool, to_file: bool
) -> str:
    """Render a recommendation; ``every`` shows all candidates, as CSV always does."""
    table = _table(found, every=every or how is Format.CSV)
    return write_table(table, how, json_content=found.to_json(), to_file=to_file)


def _table(found: "Recommendation", *, every: bool) -> Table:
    shown = found.candidates if every else found.best_of_each[:_SHOWN]
    ways = list(found.families)
    best = shown[0].merit

    def row(each: "RatedMethod") -> dict[str, Cell]:
        chosen = each.method == found.method
        return {
            "method": Cell(each.method, bold=chosen),
            "merit": Cell(percent(each.merit), bold=chosen, value=each.merit),
            "gap": Cell("" if chosen else percent(each.merit - best), value=each.merit - best),
            **{way: Cell(percent(each.auroc[way]), value=each.auroc[way]) for way in ways},
        }

    notes = [
        _reason(found),
        _confidence(found),
        "the ranking uses ID images and corrupted copies of them; real OOD images may differ",
    ]
    if not every:
        count = len(found.candidates)
        notes.append(
            f"the best setting of {len(shown)} of {len(found.best_of_each)} methods; "
            f"all {count} candidates: --all"
        )
    if found.restricted:
        notes.append("not stored, since methods or images were restricted")
    return Table(
        lead=(f"recommended: {found.method} ({found.sureness})", f"next: {_next_command(found)}"),
        title=(
            f"{found.run}: AUROC of {counted(found.n, f'{found.part} image')} of {found.data} "
            "against corrupted copies of them",
        ),
        columns=(
            Column("method", "Method"),
            Column("merit", "Mean ↑", right=True),
            Column("gap", "Gap", right=True),
            *(Column(way, way, right=True) for way in ways),
        ),
        rows=[row(each) for each in shown],
        notes=notes,
        droppable=tuple(ways[::-1]),
    )


def _reason(found: "Recommendation") -> str:
    chosen = found.candidates[0]
    hardest = min(chosen.auroc, key=lambda way: chosen.auroc[way])
    families = list(dict.fromkeys(found.families.values()))
    text = (
        f"reason: the highest mean AUROC, {percent(chosen.merit)} %, over "
        f"{' and '.join(filter(None, [', '.join(families[:-1]), families[-1]]))}, with equal "
        f"weights; its lowest AUROC is on {hardest} ({percent(chosen.auroc[hardest])} %)"
    )
    msp = found.rated("msp")
    if msp is not None and found.method != "msp":
        text += f"; msp has {percent(msp.merit)} %"
    return text


def _next_command(found: "Recommendation") -> str:
    """Return the command that screens images with the chosen method."""
    method = found.method if found.restricted else "auto"
    return f"ood predict IMAGES --run {shlex.quote(found.run)} --method {shlex.quote(method)}"


def _confidence(found: "Recommendation") -> str:
    if found.runner_up is None or found.lead is None:
        return f"confidence: {found.sureness}"
    assert found.lead_low is not None  # always set together
    assert found.lead_high is not None
    return (
        f"confidence: it is best in {100 * found.share:.0f} % of {found.draws} bootstrap samples "
        f"of images with one kind of corruption omitted; ahead of {found.runner_up} by "
        f"{percent(found.lead)} points (95 % of samples: {percent(found.lead_low)} to "
        f"{percent(found.lead_high)})"
    )
