"""The accuracy of a trained classifier per class."""

from collections.abc import Mapping, Sequence
from typing import Any

from oodcli.cli.render.formats.table import Cell, Column, Table, percent


def accuracy_table(run: str, class_names: Sequence[str], tested: Mapping[str, Any]) -> Table:
    """Return a table of the accuracy on the test images of every class, worst first.

    Parameters
    ----------
    run
        Name of the run.
    class_names
        Names of its classes.
    tested
        The object ``training.test`` of the run's record.
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
