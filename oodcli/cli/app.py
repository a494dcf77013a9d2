"""The program: its commands, and the one place where errors become messages and exit codes."""

import difflib
import errno
import functools
import io
import os
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from oodcli.cli import (
    completion,
    datasets,
    doctor,
    export,
    importing,
    methods,
    normratio,
    predict,
    recipes,
    recommend,
    report,
    run,
    runs,
    score,
    train,
    tuning,
)
from oodcli.cli.speech import deliver, say, tell
from oodcli.errors import OodError
from oodcli.manual import TOPICS
from oodcli.pools import shared_pools
from oodcli.text import LEGIBLE, printable_lines
from oodcli.version import __version__

INTERRUPTED = 130
BROKEN_PIPE = 141
# Commands that several processes run together.
SHARED = ("train", "score")


class _Boundary(TyperGroup):
    """Turns errors that the user can cure into one line and an exit code."""

    def make_context(self, *arguments: Any, **extra: Any) -> Any:  # noqa: ANN401 - Typer's own signature
        """Read the options of the program."""
        try:
            return super().make_context(*arguments, **extra)
        except Exception as error:
            _make_printable(error)
            raise

    def invoke(self, ctx: Any) -> Any:  # noqa: ANN401 - Typer's own signature
        """Run a command; 1 for an error, 130 when interrupted."""
        try:
            with shared_pools():
                return super().invoke(ctx)
        except OodError as error:
            _fail(str(error))
        except KeyboardInterrupt:
            # Training by name begins a new run each time, unless it is told to go on.
            training = getattr(ctx, "invoked_subcommand", None) == "train"
            cure = "resume it with: ood train --resume" if training else "the same command resumes"
            _fail(f"interrupted; {cure} (from what is finished)", INTERRUPTED)
        except BrokenPipeError:
            # Whoever read our output has gone; nothing is left to say, not even at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(BROKEN_PIPE)
        except OSError as error:
            _fail(_explained(error))
        except Exception as error:
            _make_printable(error)
            raise


def _make_printable(error: Exception) -> None:
    """Let an error of wrong usage, which Typer prints, repeat what was typed without steering."""
    if hasattr(error, "format_message"):
        text = printable_lines(error.format_message())
        error.format_message = lambda: text


def _explained(error: OSError) -> str:
    """Say what the operating system refused, and what helps."""
    where = error.filename or "a file"
    cures = {
        errno.ENOSPC: "free some disk space, or use another store: --store DIR",
        errno.EDQUOT: "free some of your quota, or use another store: --store DIR",
        errno.EROFS: "choose a writable folder: --store DIR",
        errno.EACCES: "change its permissions, or choose another store: --store DIR",
        errno.EPERM: "change its permissions, or choose another store: --store DIR",
        errno.EFBIG: "the limit on file sizes is too low: ulimit -f",
    }
    cure = cures.get(error.errno or 0)
    reason = (error.strerror or str(error)).lower()
    return f"cannot use {where}: {reason}" + (f"; {cure}" if cure else "")


def _fail(message: str, code: int = 1) -> NoReturn:
    say(f"error: {message}")
    sys.exit(code)


app = typer.Typer(
    cls=_Boundary,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    epilog=(
        "First steps: ood run (a table in a minute, no download); ood help start (the manual); "
        "ood import --help (a network that you have); ood doctor (is everything installed?)"
    ),
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


def _version(wanted: bool) -> None:
    if wanted:
        tell(f"ood {__version__}")
        raise typer.Exit


@app.callback()
def program(
    ctx: typer.Context,
    version: Annotated[  # noqa: ARG001 - its callback has used it
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Out-of-distribution (OOD) detection for image classifiers: train or import a network, score
    images by dozens of methods, report FPR95, AUROC and AUPR, screen incoming images.
    """  # noqa: D205 - the first sentence is the help of the program
    # Of the processes that torchrun starts, the first alone does what they do not share.
    other = "TORCHELASTIC_RUN_ID" in os.environ and os.environ.get("RANK", "0") != "0"
    if other and ctx.invoked_subcommand not in SHARED:
        raise typer.Exit


app.command("run", epilog="Manual: ood help start")(run.run)
app.command("train", epilog="Manual: ood help training")(train.train)
app.command("import", epilog="Manual: ood help networks")(importing.import_)
app.command("normratio", epilog="Manual: ood help selection")(normratio.normratio)
app.command("score", epilog="Manual: ood help --page methods")(score.score)
app.command("recommend", epilog="Manual: ood help selection")(recommend.recommend)
app.command("predict", epilog="Manual: ood help screening")(predict.predict)
app.command("tuning", epilog="Manual: ood help selection")(tuning.tuning)
app.command("report", epilog="Manual: ood help reports")(report.report)
app.command("export", epilog="Manual: ood help screening")(export.export)
app.command("doctor", epilog="Manual: ood help start")(doctor.doctor)
app.add_typer(runs.app, name="runs", epilog="Manual: ood help start")
app.add_typer(methods.app, name="methods", epilog="Manual: ood help --page methods")
app.add_typer(recipes.app, name="recipes", epilog="Manual: ood help training")
app.add_typer(datasets.app, name="datasets", epilog="Manual: ood help data")


@app.command("help")
def help_(
    ctx: typer.Context,
    topic: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="COMMAND|TOPIC",
            help="A command, such as score or runs list, or a page of the manual, such as data.",
            show_default=False,
            autocompletion=completion.commands_and_topics,
        ),
    ] = None,
    page: Annotated[
        str | None,
        typer.Option(
            "--page",
            metavar="TOPIC",
            autocompletion=completion.topics,
            help="Show this page of the manual; for pages that have the name of a command.",
            show_default=False,
        ),
    ] = None,
    pages: Annotated[bool, typer.Option("--list", help="List the pages of the manual.")] = False,
) -> None:
    """Show the help of a command, or a page of the manual."""
    from oodcli.cli.render.manual import write_contents, write_page

    words = list(topic or ())
    if bool(words) + (page is not None) + pages > 1:
        ctx.fail("Give one of COMMAND, TOPIC, --page and --list.")
    program = ctx.find_root()
    names = list(getattr(program.command, "commands", ()))
    if pages:
        deliver(write_contents(names), None)
    elif page is not None:
        deliver(write_page(_known(ctx, page, [*TOPICS])), None)
    elif words and _known(ctx, words[0], [*names, *TOPICS]) not in names:
        if words[1:]:
            ctx.fail(f"Got unexpected extra argument ({' '.join(words[1:])})")
        deliver(write_page(words[0]), None)
    else:
        tell(_help_of(program, words))


def _known(ctx: typer.Context, name: str, names: list[str]) -> str:
    """Return a name, or refuse it as wrong usage with those that are like it."""
    if name not in names:
        like = " or ".join(repr(each) for each in difflib.get_close_matches(name, names))
        ctx.fail(f"No such command or topic {name!r}." + (f" Did you mean {like}?" if like else ""))
    return name


def _help_of(program: Any, words: list[str]) -> str:  # noqa: ANN401 - Typer's own context
    """Return what ``--help`` of a command prints."""
    shown: Any = program.command
    within: Any = program
    while words and isinstance(shown, TyperGroup):
        name, found, _ = shown.resolve_command(within, words[:1])
        assert found is not None  # an unknown name is refused, with those that are like it
        # Without this, a command that must have arguments would miss them.
        within = found.make_context(name, [], parent=within, resilient_parsing=True)
        within.resilient_parsing = False
        shown, words = found, words[1:]
    return within.get_help()


def main(argv: list[str] | None = None) -> None:
    """Run the program and exit.

    Parameters
    ----------
    argv
        Arguments; those of the process if None.
    """
    if sys.stderr is None:
        sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115 - for the life of the program
    if sys.stdout is None:
        _fail("stdout is closed, but the result is written there; keep it open")
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A result is never lost to a stream that lacks a character of it.
        sys.stdout.reconfigure(errors=LEGIBLE)
    program = functools.partial(app, args=argv, prog_name="ood")
    if os.environ.get("_OOD_COMPLETE") == "complete_bash":
        completion.in_bash(program)
    else:
        program()
