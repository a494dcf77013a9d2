"""The accuracy of a trained classifier, class by class."""

from collections.abc import Mapping, Sequence
from typing import Any

from oodcli.cli.render.formats.table import Cell, Column, Table, percent


def accuracy_table(run: str, class_names: Sequence[str], tested: Mapping[str, Any]) -> Table:
    """Tabulate how often a classifier is right on the test images of every class, worst first.

    Parameters
    ----------
    run
        Name of the run.
    class_names
        Its classes.
    tested
        What the record of the run has of its test images.
    """
    by_class = sorted(
        zip(class_names, tested["by_class"], strict=True),
        key=lambda each: (each[1][1] is None, each[1][1] or 0.0),
    )
    return Table(
        title=(f"{run}: accuracy on {tested['n']:,} test images by class, in percent",),
        columns=(
            Column("class", "Class"),
            Column("accuracy", "Accuracy", right=True),
            Column("images", "Images", right=True),
            Column("bar", "", bar=True),
        ),
        rows=[
            {
                "class": Cell(name),
                "accuracy": Cell("" if share is None else percent(share), value=share),
                "images": Cell(f"{n:,}", value=n),
                "bar": Cell("", value=share or 0.0),
            }
            for name, (n, share) in by_class
        ],
    )
