"""The program: its commands, and the conversion of errors to messages and exit codes."""

import difflib
import errno
import functools
import io
import os
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperCommand, TyperGroup
from typer.models import CommandInfo

from oodcli.cli import (
    cluster,
    completion,
    datasets,
    detector,
    doctor,
    drift,
    explain,
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
    verdicts,
)
from oodcli.cli.console import print_stderr, print_stdout, write_result
from oodcli.errors import OodError
from oodcli.manual import TOPICS
from oodcli.pools import shared_pools
from oodcli.remote.addresses import without_credentials
from oodcli.text import ASCII_FALLBACK, printable_lines
from oodcli.version import __version__

INTERRUPTED = 130
BROKEN_PIPE = 141
# Commands that several processes can run together.
DISTRIBUTED = ("train", "score", "predict")


class _ErrorBoundary(TyperGroup):
    """Converts errors that the user can correct into one line and an exit code."""

    def make_context(self, *arguments: Any, **extra: Any) -> Any:  # noqa: ANN401 - Typer's own signature
        """Parse the options of the program."""
        try:
            return super().make_context(*arguments, **extra)
        except Exception as error:
            _reword_usage_error(error)
            raise

    def invoke(self, ctx: Any) -> Any:  # noqa: ANN401 - Typer's own signature
        """Run a command; exit with 1 for an error, with 130 when interrupted."""
        try:
            with shared_pools():
                return super().invoke(ctx)
        except OodError as error:
            _fail(str(error))
        except KeyboardInterrupt:
            # Without --resume, ood train starts a new run each time.
            training = getattr(ctx, "invoked_subcommand", None) == "train"
            cure = (
                "resume with: ood train --resume" if training else "run the same command to resume"
            )
            _fail(f"interrupted; {cure} (finished parts are stored)", INTERRUPTED)
        except BrokenPipeError:
            # The reader of stdout has exited; prevent a further error when stdout is flushed.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(BROKEN_PIPE)
        except OSError as error:
            _fail(_os_error_message(error))
        except Exception as error:
            _reword_usage_error(error)
            raise


class _Command(TyperCommand):
    """Says that of an option for one value that is given several times, the last counts."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # noqa: ANN401 - Typer's own signature
        """Parse the options of the command."""
        rest = super().parse_args(ctx, list(args))  # --help ends here
        if not ctx.resilient_parsing:
            _, _, order = self.make_parser(ctx).parse_args(args=list(args))
            for option, times in Counter(order).items():
                several = any(
                    getattr(option, kind, False) for kind in ("multiple", "is_flag", "count")
                )
                if times > 1 and not several:
                    print_stderr(f"note: {option.opts[0]} is given {times} times; the last counts")
        return rest


def _reword_usage_error(error: Exception) -> None:
    """Make the message of a usage error, which Typer prints, clear and printable.

    Typer validates values by Pydantic and passes on its messages, such as "Value error, 'x' is not
    one of 'a', 'b'." or "Input should be a valid integer, unable to parse string as an integer".
    """
    if not hasattr(error, "format_message"):
        return
    details = getattr(error.__cause__, "errors", None)
    if hasattr(error, "message") and callable(details):
        error.message = _value_message(details()[0]) or error.message
    text = printable_lines(error.format_message())
    error.format_message = lambda: text


def _value_message(detail: dict[str, Any]) -> str | None:
    """Return what is wrong with a value, from an error of Pydantic; None for other errors."""
    given, limits = detail.get("input"), detail.get("ctx", {})
    match detail.get("type"):
        case "value_error":
            return str(limits.get("error"))
        case "int_parsing" | "int_from_float" | "int_parsing_size":
            return f"{given!r} is not an integer."
        case "float_parsing":
            return f"{given!r} is not a number."
        case "greater_than_equal":
            return f"must be at least {limits.get('ge')}, not {given}."
        case "less_than_equal":
            return f"must be at most {limits.get('le')}, not {given}."
    return None


def _os_error_message(error: OSError) -> str:
    """Return a message for an error of the operating system, with a suggestion."""
    where = error.filename or "a file"
    cures = {
        errno.ENOSPC: "free some disk space, or use another store: --store DIR",
        errno.EDQUOT: "free some disk quota, or use another store: --store DIR",
        errno.EROFS: "choose a writable folder: --store DIR",
        errno.EACCES: "change its permissions, or use another store: --store DIR",
        errno.EPERM: "change its permissions, or use another store: --store DIR",
        errno.EFBIG: "the limit on file sizes is too low: ulimit -f",
    }
    cure = cures.get(error.errno or 0)
    reason = (error.strerror or str(error)).lower()
    return f"cannot use {where}: {reason}" + (f"; {cure}" if cure else "")


def _fail(message: str, code: int = 1) -> NoReturn:
    print_stderr(f"error: {message}")
    sys.exit(code)


app = typer.Typer(
    cls=_ErrorBoundary,
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
        print_stdout(f"ood {__version__}")
        raise typer.Exit


@app.callback()
def program(
    ctx: typer.Context,
    version: Annotated[  # noqa: ARG001 - handled by its callback
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Out-of-distribution (OOD) detection for image classifiers: train or import a network, score
    images by dozens of methods, report FPR95, AUROC and AUPR, screen incoming images.
    """  # noqa: D205 - the first sentence is the help of the program
    # Of the processes started by torchrun, only the first runs commands that are not distributed.
    other = "TORCHELASTIC_RUN_ID" in os.environ and os.environ.get("RANK", "0") != "0"
    if other and ctx.invoked_subcommand not in DISTRIBUTED:
        raise typer.Exit


app.command("run", epilog="Manual: ood help start")(run.run)
app.command("train", epilog="Manual: ood help training")(train.train)
app.command("import", epilog="Manual: ood help networks")(importing.import_)
app.command("normratio", epilog="Manual: ood help selection")(normratio.normratio)
app.command("score", epilog="Manual: ood help --page methods")(score.score)
app.command("recommend", epilog="Manual: ood help selection")(recommend.recommend)
app.command("predict", epilog="Manual: ood help screening")(predict.predict)
app.command("explain", epilog="Manual: ood help screening")(explain.explain)
app.command("cluster", epilog="Manual: ood help screening")(cluster.cluster)
app.command("drift", epilog="Manual: ood help screening")(drift.drift)
app.command("tuning", epilog="Manual: ood help selection")(tuning.tuning)
app.command("report", epilog="Manual: ood help reports")(report.report)
app.add_typer(detector.app, name="detector", epilog="Manual: ood help screening")
app.command("export", epilog="Manual: ood help screening")(export.export)
app.command("doctor", epilog="Manual: ood help start")(doctor.doctor)
app.add_typer(verdicts.app, name="verdicts", epilog="Manual: ood help screening")
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
        write_result(write_contents(names), None)
    elif page is not None:
        write_result(write_page(_check_known(ctx, page, [*TOPICS])), None)
    elif words and _check_known(ctx, words[0], [*names, *TOPICS]) not in names:
        if words[1:]:
            ctx.fail(f"Got unexpected extra argument ({' '.join(words[1:])})")
        write_result(write_page(words[0]), None)
    else:
        print_stdout(_help_of(program, words))


def _commands(program: typer.Typer) -> Iterator[CommandInfo]:
    """Yield all commands, those of groups as well."""
    yield from program.registered_commands
    for group in program.registered_groups:
        if group.typer_instance is not None:
            yield from _commands(group.typer_instance)


for _each in _commands(app):
    _each.cls = _Command


def _check_known(ctx: typer.Context, name: str, names: list[str]) -> str:
    """Return a known name; raise a usage error, with similar names, for an unknown one."""
    if name not in names:
        similar = " or ".join(repr(each) for each in difflib.get_close_matches(name, names))
        suggestion = f" Did you mean {similar}?" if similar else ""
        ctx.fail(f"No such command or topic {name!r}.{suggestion}")
    return name


def _help_of(program: Any, words: list[str]) -> str:  # noqa: ANN401 - Typer's own context
    """Return the output of ``--help`` for a command."""
    shown: Any = program.command
    within: Any = program
    while words and isinstance(shown, TyperGroup):
        name, found, _ = shown.resolve_command(within, words[:1])
        assert found is not None  # an unknown name raises a usage error
        # Resilient parsing: required arguments of the command are absent here.
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
        sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115 - open until the program ends
    if sys.stdout is None:
        _fail("stdout is closed, but the result is written there; keep it open")
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Characters that the encoding of stdout does not have must not prevent the output.
        sys.stdout.reconfigure(errors=ASCII_FALLBACK)
    # Credentials in addresses are taken out before anything can show or store them.
    if argv is None:
        sys.argv[1:] = map(without_credentials, sys.argv[1:])
    else:
        argv = list(map(without_credentials, argv))
    program = functools.partial(app, args=argv, prog_name="ood")
    if os.environ.get("_OOD_COMPLETE") == "complete_bash":
        completion.complete_in_bash(program)
    else:
        program()
