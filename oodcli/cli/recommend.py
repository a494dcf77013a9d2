"""``ood recommend``."""

import shlex
from typing import TYPE_CHECKING, Annotated

import typer

from oodcli.cli import completion
from oodcli.cli.options import (
    AmpOption,
    BatchOption,
    DeviceOption,
    Format,
    FormatOption,
    OutputOption,
    RunOption,
    SkipOption,
    StoreOption,
)

if TYPE_CHECKING:
    from oodcli.cli.render import Table
    from oodcli.workflows.recommend import RatedMethod, Recommendation

_SHOWN = 12


def recommend(
    run: RunOption = None,
    method: Annotated[
        list[str] | None,
        typer.Option(
            "--method",
            autocompletion=completion.methods,
            metavar="NAME[:KEY=VALUE,…]",
            help="Choose among these alone; may be repeated [default: every method that works "
            "from stored activations, and ensembles].",
            show_default=False,
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option("--limit", metavar="N", help="Choose on N ID images, spread evenly."),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Seed of noise, jigsaws and draws.")] = 0,
    every: Annotated[
        bool, typer.Option("--all", help="Show every candidate, not the best of the best methods.")
    ] = False,
    device: DeviceOption = "auto",
    amp: AmpOption = False,
    score_batch_size: BatchOption = None,
    skip_unreadable: SkipOption = False,
    format_: FormatOption = Format.TABLE,
    output: OutputOption = None,
    store: StoreOption = None,
) -> None:
    """Choose a method without OOD images.

    Candidates are compared on validation images and corrupted copies of them.
    """
    from oodcli.cli.progress import TerminalProgress
    from oodcli.cli.render import deliver, render_table
    from oodcli.cli.undefined import end_without
    from oodcli.store import Store
    from oodcli.workflows.recommend import RecommendRequest
    from oodcli.workflows.recommend import recommend as recommend_workflow

    found = recommend_workflow(
        Store.at(store),
        RecommendRequest(
            run=run,
            methods=tuple(method or ()),
            limit=limit,
            seed=seed,
            device=device,
            amp=amp,
            batch_size=score_batch_size,
            skip_unreadable=skip_unreadable,
        ),
        progress=TerminalProgress(),
    )
    text = render_table(
        _table(found, every=every or format_ is Format.CSV),
        format_,
        json_content=found.to_json(),
        to_file=output is not None,
    )
    deliver(text, output)
    end_without(found.undefined(method) if method else {})


def _table(found: "Recommendation", *, every: bool) -> "Table":
    from oodcli.cli.render import Cell, Column, Table, percent

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
        notes.append("not stored, since methods or images were limited")
    return Table(
        lead=(f"recommended: {found.method} ({found.sureness})", f"next: {_next(found)}"),
        title=(
            f"{found.run}: AUROC of {found.n:,} {found.part} images of {found.data} against "
            "corrupted copies of them",
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
    from oodcli.cli.render import percent

    chosen = found.candidates[0]
    hardest = min(chosen.auroc, key=lambda way: chosen.auroc[way])
    families = list(dict.fromkeys(found.families.values()))
    text = (
        f"why: it has the highest mean AUROC, {percent(chosen.merit)} %, over "
        f"{' and '.join(filter(None, [', '.join(families[:-1]), families[-1]]))}, each of which "
        f"counts the same; hardest for it is {hardest} ({percent(chosen.auroc[hardest])} %)"
    )
    msp = found.rated("msp")
    if msp is not None and found.method != "msp":
        text += f"; msp has {percent(msp.merit)} %"
    return text


def _next(found: "Recommendation") -> str:
    """Return the command that screens images by what was chosen."""
    method = found.method if found.restricted else "auto"
    return f"ood predict IMAGES --run {shlex.quote(found.run)} --method {shlex.quote(method)}"


def _confidence(found: "Recommendation") -> str:
    from oodcli.cli.render import percent

    if found.runner_up is None or found.lead is None:
        return f"confidence: {found.sureness}"
    assert found.lead_low is not None  # they come together
    assert found.lead_high is not None
    return (
        f"confidence: it wins in {100 * found.share:.0f} % of {found.draws} bootstrap samples of "
        f"images with one kind of corruption left out; ahead of {found.runner_up} by "
        f"{percent(found.lead)} points (95 % of samples: {percent(found.lead_low)} to "
        f"{percent(found.lead_high)})"
    )
