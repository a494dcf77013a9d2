"""``ood tuning``."""

from typing import TYPE_CHECKING, Annotated

import typer

from oodcli.cli import completion
from oodcli.cli.console import write_result
from oodcli.cli.options import Format, FormatOption, OutputOption, RunOption, StoreOption

if TYPE_CHECKING:
    from oodcli.store.searches import Search


def tuning(
    method: Annotated[
        str | None,
        typer.Argument(
            metavar="METHOD[@openood|@pseudo]",
            autocompletion=completion.methods,
            help="Show every setting that was tried for this method [default: the chosen settings "
            "of all methods].",
            show_default=False,
        ),
    ] = None,
    run: RunOption = None,
    format_: FormatOption = Format.TABLE,
    output: OutputOption = None,
    store: StoreOption = None,
) -> None:
    """Show how score --tune chose parameters."""
    from oodcli.cli.render.tuning import render_searches
    from oodcli.errors import MissingArtifactError, UnknownNameError
    from oodcli.store.run_names import find_run
    from oodcli.store.searches import read_searches
    from oodcli.store.store import Store

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
    text = render_searches(
        folder.name, searches, format_, every=method is not None, to_file=output is not None
    )
    write_result(text, output)


def _names(search: "Search") -> set[str]:
    """Return the names by which a search is found; ``+energy`` after a shaper is optional."""
    method = search.method.removesuffix("+energy")
    return {
        search.method, search.name, method, f"{method}@{search.tuning}",
    }  # fmt: skip
