"""``ood tuning``."""

from typing import TYPE_CHECKING, Annotated

import typer

from oodcli.cli import completion
from oodcli.cli.options import Format, FormatOption, OutputOption, RunOption, StoreOption

if TYPE_CHECKING:
    from collections.abc import Sequence

    from oodcli.cli.render import Table
    from oodcli.searches import Search


def tuning(
    method: Annotated[
        str | None,
        typer.Argument(
            metavar="METHOD[@openood|@pseudo]",
            autocompletion=completion.methods,
            help="Show every setting that was tried of it [default: what was chosen of all].",
            show_default=False,
        ),
    ] = None,
    run: RunOption = None,
    format_: FormatOption = Format.TABLE,
    output: OutputOption = None,
    store: StoreOption = None,
) -> None:
    """Show how score --tune chose parameters."""
    from oodcli.cli.render import deliver, render_table
    from oodcli.errors import MissingArtifactError, UnknownNameError
    from oodcli.runs import find_run
    from oodcli.searches import SEARCH_SCHEMA, read_searches
    from oodcli.store import Store

    folder = find_run(Store.at(store), run)
    searches = read_searches(folder.scores)
    if not searches:
        raise MissingArtifactError(
            f"no parameters have been searched for run {folder.name}; "
            f"run: ood score --run {folder.name} --tune pseudo"
        )
    if method is not None:
        found = [search for search in searches if method in _names(search)]
        if not found:
            known = {search.name for search in searches}
            raise UnknownNameError.among("search", method, known)
        searches = found
    content = {
        "schema": SEARCH_SCHEMA,
        "run": folder.name,
        "searches": [search.to_json() for search in searches],
    }
    tables = [_chosen(searches)] if method is None else [_tried(search) for search in searches]
    if format_ is Format.JSON:
        tables = tables[:1]
    texts = [
        render_table(table, format_, json_content=content, to_file=output is not None)
        for table in tables
    ]
    deliver("\n".join(texts), output)


def _names(search: "Search") -> set[str]:
    """Return what a search may be called: a shaper alone is followed by energy."""
    method = search.method.removesuffix("+energy")
    return {
        search.method, search.name, method, f"{method}@{search.tuning}",
    }  # fmt: skip


def _chosen(searches: "Sequence[Search]") -> "Table":
    from oodcli.cli.render import Cell, Column, Table, percent

    return Table(
        title=("parameters chosen on validation images, by the first maximum of AUROC",),
        columns=(
            Column("method", "Method"),
            Column("tuning", "Tuning"),
            Column("chosen", "Chosen"),
            Column("auroc", "AUROC ↑", right=True),
            Column("settings", "Settings", right=True),
            Column("against", "ID against"),
        ),
        rows=[
            {
                "method": Cell(search.method),
                "tuning": Cell(search.tuning),
                "chosen": Cell(search.chosen),
                "auroc": Cell(
                    next(
                        percent(each.auroc)
                        for each in search.candidates
                        if each.method == search.chosen and each.auroc is not None
                    )
                ),
                "settings": Cell(str(len(search.candidates))),
                "against": Cell(f"{search.ood_set} ({search.n_ood:,})"),
            }
            for search in searches
        ],
    )


def _tried(search: "Search") -> "Table":
    from oodcli.cli.render import Cell, Column, Table, percent

    return Table(
        title=(
            f"{search.name}: {search.id_set} ({search.n_id:,} images) against "
            f"{search.ood_set} ({search.n_ood:,} images)",
        ),
        columns=(
            Column("method", "Setting"),
            Column("auroc", "AUROC ↑", right=True),
            Column("reason", ""),
        ),
        rows=[
            {
                "method": Cell(each.method, bold=each.method == search.chosen),
                "auroc": Cell(
                    "" if each.auroc is None else percent(each.auroc),
                    bold=each.method == search.chosen,
                ),
                "reason": Cell(each.reason or ("chosen" if each.method == search.chosen else "")),
            }
            for each in search.candidates
        ],
    )
