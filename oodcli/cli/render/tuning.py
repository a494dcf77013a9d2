"""Results of tuning: the chosen parameters, or all evaluated settings."""

from collections.abc import Sequence

from oodcli.cli.options import Format
from oodcli.cli.render.formats import Cell, Column, Table, percent, write_table
from oodcli.store.searches import SEARCH_SCHEMA, Search


def render_searches(
    run: str, searches: Sequence[Search], how: Format, *, every: bool, to_file: bool
) -> str:
    """Render the searches of a run.

    Parameters
    ----------
    run
        Name of the run.
    searches
        The searches, at least one.
    how
        The format.
    every
        Whether to show all evaluated settings, in one table per search.
    to_file
        Whether the text is written to a file instead of stdout.
    """
    content = {
        "schema": SEARCH_SCHEMA,
        "run": run,
        "searches": [search.to_json() for search in searches],
    }
    tables = [_search_table(search) for search in searches] if every else [_chosen_table(searches)]
    if how is Format.JSON:
        tables = tables[:1]
    return "\n".join(
        write_table(table, how, json_content=content, to_file=to_file) for table in tables
    )


def _chosen_table(searches: Sequence[Search]) -> Table:
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


def _search_table(search: Search) -> Table:
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
