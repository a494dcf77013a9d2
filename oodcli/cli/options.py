"""Options shared by several commands, and the parsing of their values."""

import shlex
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from typer.models import OptionInfo

from oodcli.cli import completion
from oodcli.errors import InvalidInputError


class Format(StrEnum):
    """Format of a result."""

    TABLE = "table"
    MARKDOWN = "markdown"
    LATEX = "latex"
    CSV = "csv"
    JSON = "json"
    HTML = "html"


class Layout(StrEnum):
    """The paper whose table layout is used."""

    FEATURENORM = "featurenorm"
    MODE = "mode"
    OPENOOD = "openood"


class Per(StrEnum):
    """Show single sets, group averages, or both."""

    SET = "set"
    GROUP = "group"
    BOTH = "both"


class PlotFormat(StrEnum):
    """Format of a plot."""

    PNG = "png"
    SVG = "svg"
    PDF = "pdf"


class Convention(StrEnum):
    """Definition of the metrics."""

    FEATURENORM = "featurenorm"
    KNN = "knn"
    OPENOOD = "openood"
    NEUTRAL = "neutral"


class ResizeOf(StrEnum):
    """Whether benchmark images are resized as the benchmark or as the network prescribes."""

    BENCHMARK = "benchmark"
    NETWORK = "network"


class Tuning(StrEnum):
    """How parameters of methods are tuned."""

    OPENOOD = "openood"
    PSEUDO = "pseudo"


def writable_file(path: Path | None) -> Path | None:
    """Check, before any work, that an output file can be written."""
    if path is not None:
        from oodcli.store.store import check_output_file

        check_output_file(path)
    return path


def writable_folder(param: typer.CallbackParam, path: Path | None) -> Path | None:
    """Check, before any work, that an output folder can be written."""
    if path is not None:
        from oodcli.store.store import check_output_folder

        check_output_folder(path, option=param.opts[0])
    return path


StoreOption = Annotated[
    Path | None,
    typer.Option(
        "--store",
        metavar="DIR",
        help="Folder where everything is stored [env: OOD_HOME; default: the platform's].",
        show_default=False,
    ),
]
RunOption = Annotated[
    str | None,
    typer.Option(
        "--run",
        autocompletion=completion.runs,
        metavar="RUN",
        help="Name of the run [default: OOD_RUN, else ood runs use, else the run created last].",
    ),
]
MethodOption = Annotated[
    str | None,
    typer.Option(
        "--method",
        autocompletion=completion.methods,
        metavar="NAME[:KEY=VALUE,…]",
        help="A method, a combination such as norm+energy, or auto for the recommended one, "
        "which is chosen now if necessary [default: the one that ood recommend chose, else msp].",
        show_default=False,
    ),
]
OverwriteFilesOption = Annotated[
    bool, typer.Option("--overwrite", help="Replace files of the same names in the folder.")
]
DeviceOption = Annotated[
    str, typer.Option("--device", help="auto, cpu, cuda, cuda:N or mps.", metavar="DEVICE")
]
AmpOption = Annotated[bool, typer.Option("--amp", help="Compute in bfloat16 where that is safe.")]
FormatOption = Annotated[Format, typer.Option("--format", help="Format of the result.")]
OutputOption = Annotated[
    Path | None,
    typer.Option(
        "--output",
        metavar="FILE",
        help="Write the result to FILE instead of stdout.",
        callback=writable_file,
    ),
]
FullOption = Annotated[
    bool,
    typer.Option(
        "--full",
        help="Show every method on every set below the summary; files always contain it.",
    ),
]
SkipOption = Annotated[
    bool,
    typer.Option(
        "--skip-unreadable",
        help="Skip images that cannot be read, and report their number; stored with the run.",
    ),
]
BatchOption = Annotated[
    int | None,
    typer.Option(
        "--score-batch-size",
        min=1,
        metavar="N",
        help="Images per forward pass; changes scores by rounding at most.",
    ),
]
DataOption = Annotated[
    str,
    typer.Option(
        "--data",
        autocompletion=completion.images,
        metavar="NAME|FOLDER|FILE",
        help="A known data set; a folder with <class>/…, or with train/<class>/… and "
        "test/<class>/…; arrays, a table, an archive; or train=PATH,test=PATH.",
    ),
]


WindowOption = Annotated[
    str | None,
    typer.Option(
        "--window",
        metavar="CENTER/WIDTH|LOW..HIGH[:AXIS]",
        help="Values of DICOM and NIfTI images that become black to white, in the units of the "
        "file, and how volumes are sliced: axial, coronal or sagittal; stored with the run.",
        show_default=False,
    ),
]
JpegDraftOption = Annotated[
    bool,
    typer.Option(
        "--jpeg-draft",
        help="Decode large JPEG files at 1/2, 1/4 or 1/8 of their size, at least twice the size "
        "that they are resized to: several times as fast, other pixels; stored with the run.",
    ),
]
JpegDraftOfRunOption = Annotated[
    bool,
    typer.Option(
        "--jpeg-draft",
        help="Refuse a run that decodes JPEG files whole; a run with drafts needs no option.",
    ),
]
ColumnsOption = Annotated[
    str | None,
    typer.Option(
        "--columns",
        metavar="path=NAME,label=NAME,split=NAME",
        help="Columns of tables of images, by name or number, where they have other names.",
        show_default=False,
    ),
]


def output_folder(help_: str) -> OptionInfo:
    """Return the option ``--output DIR`` of a command that writes several files.

    Parameters
    ----------
    help_
        What the command writes.
    """
    return typer.Option("--output", metavar="DIR", callback=writable_folder, help=help_)


def given_options(context: typer.Context) -> list[str]:
    """Return the names of the options that are given on the command line."""
    return [
        each.opts[0]
        for each in context.command.params
        if each.name is not None
        and (source := context.get_parameter_source(each.name)) is not None
        and source.name == "COMMANDLINE"
    ]


def command_line(context: typer.Context, **replaced: str | bool | None) -> str:
    """Return the command with the options that were given, as a line for a shell.

    Parameters
    ----------
    context
        The context of the command.
    replaced
        Other values of options, by the name of their parameter; None leaves the option out.
    """
    words = context.command_path.split()
    for each in context.command.params:
        name = each.name or ""
        source = context.get_parameter_source(name)
        given = source is not None and source.name == "COMMANDLINE"
        value = replaced[name] if name in replaced else context.params[name] if given else None
        if value is None or value is False:
            continue
        values = [str(one) for one in (value if isinstance(value, (list, tuple)) else [value])]
        if each.param_type_name == "argument":
            words += values
        elif value is True:
            words.append(each.opts[0])
        else:
            words += [word for one in values for word in _option(each.opts[0], one)]
    return shlex.join(words)


def _option(name: str, value: str) -> list[str]:
    return [f"{name}={value}"] if value.startswith("-") else [name, value]


def three_numbers(option: str, text: str) -> tuple[float, float, float]:
    """Parse one number for all channels, or three numbers separated by commas.

    Raises
    ------
    InvalidInputError
        If the text is neither.
    """
    try:
        values = [float(piece) for piece in text.split(",")]
    except ValueError:
        values = []
    if len(values) == 1:
        values *= 3
    if len(values) != 3 or not all(abs(value) < float("inf") for value in values):
        raise InvalidInputError(
            f"{option} must be one number or three, such as 0.5 or 0.485,0.456,0.406, not {text!r}"
        )
    return values[0], values[1], values[2]


TprOption = Annotated[
    float | None,
    typer.Option(
        "--tpr",
        metavar="SHARE",
        help="Share of ID images to accept [default: 0.95].",
        show_default=False,
    ),
]
ThresholdOption = Annotated[
    float | None,
    typer.Option(
        "--threshold",
        metavar="SCORE",
        help="Accept images with at least this score.",
        show_default=False,
    ),
]
FalseAlarmsOption = Annotated[
    float | None,
    typer.Option(
        "--false-alarms",
        metavar="RATE",
        help="Flag images with a conformal p-value of at most RATE, such as 0.01: on average at "
        "most this share of ID images.",
        show_default=False,
    ),
]
FdrOption = Annotated[
    float | None,
    typer.Option(
        "--fdr",
        metavar="RATE",
        help="Decide over all images together, by the Benjamini-Hochberg procedure: on average at "
        "most this share of the flagged images, such as 0.05, is ID.",
        show_default=False,
    ),
]
PerClassOption = Annotated[
    bool,
    typer.Option(
        "--per-class",
        help="Compare an image with the ID images of the same predicted class only.",
    ),
]
