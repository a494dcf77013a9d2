"""``ood score``."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from oodcli.cli import completion
from oodcli.cli.console import print_stderr, write_result
from oodcli.cli.options import (
    AmpOption,
    BatchOption,
    ColumnsOption,
    DeviceOption,
    Format,
    FormatOption,
    JpegDraftOfRunOption,
    OutputOption,
    ResizeOf,
    SkipOption,
    StoreOption,
    Tuning,
    WindowOption,
    given_options,
    writable_file,
)
from oodcli.text import counted

if TYPE_CHECKING:
    from oodcli.compute.processes import Processes
    from oodcli.workflows.score import ScoreResult
    from oodcli.workflows.score_file import FileScores


# Options that have no effect on activations from a file.
_RUN_OPTIONS = frozenset(
    {
        "--run", "--ood", "--near", "--far", "--shifted-id", "--benchmark", "--allow-missing",
        "--tune", "--tune-ood", "--limit", "--columns",
        "--export-activations", "--dry-run", "--amp", "--score-batch-size", "--skip-unreadable",
        "--resize", "--ensemble", "--name", "--keep-blocks", "--blocks-limit",
    }
)  # fmt: skip


def score(
    context: typer.Context,
    run: Annotated[
        list[str] | None,
        typer.Option(
            "--run",
            autocompletion=completion.runs,
            metavar="RUN",
            help="Name of the run; repeated only with --ensemble [default: OOD_RUN, else ood runs "
            "use, else the run created last].",
            show_default=False,
        ),
    ] = None,
    ensemble: Annotated[
        bool,
        typer.Option(
            "--ensemble",
            help="Score the runs as an ensemble: by the mean of their logits and of their class "
            "probabilities, and by their agreement; it is stored beside the runs.",
        ),
    ] = False,
    name: Annotated[
        str | None,
        typer.Option("--name", metavar="NAME", help="Name of the ensemble.", show_default=False),
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(
            "--method",
            autocompletion=completion.methods,
            metavar="NAME[:KEY=VALUE,…]",
            help="A method, a combination such as norm+energy, ensemble:A+B, package.module:Class, "
            "auto for the recommended one, or all; can be repeated [default: every method "
            "that works from stored activations].",
            show_default=False,
        ),
    ] = None,
    ood: Annotated[
        list[str] | None,
        typer.Option(
            "--ood",
            autocompletion=completion.images,
            metavar="NAME|FOLDER|FILE",
            help="An OOD set, or NAME=PATH; can be repeated.",
            show_default=False,
        ),
    ] = None,
    near: Annotated[
        list[str] | None,
        typer.Option(
            "--near",
            autocompletion=completion.images,
            metavar="NAME|FOLDER|FILE",
            help="An OOD set close to the classes, averaged with others of its group; can be "
            "repeated.",
            show_default=False,
        ),
    ] = None,
    far: Annotated[
        list[str] | None,
        typer.Option(
            "--far",
            autocompletion=completion.images,
            metavar="NAME|FOLDER|FILE",
            help="An OOD set far from the classes; can be repeated.",
            show_default=False,
        ),
    ] = None,
    shifted_id: Annotated[
        list[str] | None,
        typer.Option(
            "--shifted-id",
            autocompletion=completion.images,
            metavar="NAME|FOLDER|FILE",
            help="A set of the same classes from another distribution, with labels, for "
            "full-spectrum results and its accuracy; can be repeated.",
            show_default=False,
        ),
    ] = None,
    benchmark: Annotated[
        str | None,
        typer.Option(
            "--benchmark",
            autocompletion=completion.benchmarks,
            metavar="NAME",
            help="Score the OOD sets of a benchmark [default: that of the data].",
        ),
    ] = None,
    allow_missing: Annotated[
        bool,
        typer.Option("--allow-missing", help="Skip sets of the benchmark that are not downloaded."),
    ] = False,
    tune: Annotated[
        list[Tuning] | None,
        typer.Option(
            "--tune",
            help="Choose parameters on validation images: with OOD validation images (openood), or "
            "with jigsaws of the ID images (pseudo); can be repeated.",
            show_default=False,
        ),
    ] = None,
    tune_ood: Annotated[
        str | None,
        typer.Option(
            "--tune-ood",
            autocompletion=completion.images,
            metavar="NAME|FOLDER|FILE",
            help="OOD validation images for --tune openood [default: those of the benchmark].",
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option("--limit", metavar="N", help="Use N images of each set, evenly spaced."),
    ] = None,
    export: Annotated[
        Path | None,
        typer.Option(
            "--export",
            metavar="FILE.npz",
            help="Write the scores of this call to FILE.npz.",
            callback=writable_file,
        ),
    ] = None,
    activations: Annotated[
        Path | None,
        typer.Option(
            "--activations",
            metavar="FILE.npz",
            help="Score the activations in a file of any program instead of a run.",
            show_default=False,
        ),
    ] = None,
    export_activations: Annotated[
        Path | None,
        typer.Option(
            "--export-activations",
            metavar="FILE.npz",
            callback=writable_file,
            help="Write the activations of this call and of the training images to FILE.npz.",
            show_default=False,
        ),
    ] = None,
    keep_blocks: Annotated[
        bool,
        typer.Option(
            "--keep-blocks",
            help="Store the mean of every channel of every block for all images, and also score "
            "by methods of several layers; the size is reported first.",
        ),
    ] = False,
    blocks_limit: Annotated[
        float,
        typer.Option(
            "--blocks-limit",
            metavar="GB",
            help="Refuse to store pooled maps of blocks that need more.",
        ),
    ] = 20.0,
    resize: Annotated[
        ResizeOf | None,
        typer.Option(
            "--resize",
            help="On a benchmark, resize images as it has it or as the network has it [default: as "
            "for its published numbers].",
            show_default=False,
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Report the expected work and time, and do nothing.")
    ] = False,
    device: DeviceOption = "auto",
    amp: AmpOption = False,
    score_batch_size: BatchOption = None,
    columns: ColumnsOption = None,
    window: WindowOption = None,
    jpeg_draft: JpegDraftOfRunOption = False,
    skip_unreadable: SkipOption = False,
    format_: FormatOption = Format.TABLE,
    output: OutputOption = None,
    store: StoreOption = None,
) -> None:
    """Score ID and OOD images by every method.

    The network sees each image once; activations are stored and read by later calls.
    """
    from oodcli.cli.processes import job
    from oodcli.cli.render.score import render_plan, render_score
    from oodcli.cli.undefined import exit_if_undefined
    from oodcli.compute.compute import Compute
    from oodcli.data.opening import with_columns
    from oodcli.store.store import Store
    from oodcli.workflows.score import ScoreRequest, plan, score_as_worker
    from oodcli.workflows.score import score as score_workflow
    from oodcli.workflows.score_ensemble import EnsembleRequest, score_ensemble

    if activations is not None:
        _check_activation_options(given_options(context))
        found = _score_file(activations, method or (), device, export)
        if found is not None:
            write_result(render_score(found, format_, to_file=output is not None), output)
            exit_if_undefined({name: found.left_out[name] for name in found.undefined})
        return
    runs = tuple(run or ())
    _check_runs(runs, ensemble=ensemble, name=name, dry_run=dry_run)
    named = with_columns(
        columns,
        ood or (),
        near or (),
        far or (),
        shifted_id or (),
        () if tune_ood is None else (tune_ood,),
    )
    request = ScoreRequest(
        run=next(iter(runs), None),
        methods=tuple(method or ()),
        ood=named[0],
        near=named[1],
        far=named[2],
        shifted_id=named[3],
        benchmark=benchmark,
        allow_missing=allow_missing,
        tune=tuple(each.value for each in tune or ()),
        tune_ood=next(iter(named[4]), None),
        limit=limit,
        skip_unreadable=skip_unreadable,
        window=window,
        jpeg_draft=jpeg_draft,
        resize=None if resize is None else resize.value,
        export=export,
        export_activations=export_activations,
        keep_blocks=keep_blocks,
        blocks_limit=blocks_limit,
    )
    opened_store = Store.at(store)
    with job(device) as (processes, own_device, progress):
        compute = Compute.of(own_device, amp=amp, batch_size=score_batch_size)
        request = replace(request, compute=compute)
        if ensemble:
            _check_alone(processes)
            result = score_ensemble(
                opened_store, EnsembleRequest(runs, name, request), progress=progress
            )
            _finish(result, format_, output)
            return
        if not processes.first:
            if not dry_run:
                score_as_worker(opened_store, request, processes=processes)
            return
        if dry_run:
            planned = plan(opened_store, request, progress=progress)
            write_result(render_plan(planned, format_, to_file=output is not None), output)
            return
        result = score_workflow(opened_store, request, progress=progress, processes=processes)
    _finish(result, format_, output)


def _finish(result: "ScoreResult", format_: Format, output: Path | None) -> None:
    """Print the result of scoring a run or an ensemble; exit with 1 if a method is undefined."""
    from oodcli.cli.render.score import render_score
    from oodcli.cli.undefined import exit_if_undefined

    _print_passes(result)
    write_result(render_score(result, format_, to_file=output is not None), output)
    exit_if_undefined({name: result.left_out[name] for name in result.undefined})


def _check_runs(runs: Sequence[str], *, ensemble: bool, name: str | None, dry_run: bool) -> None:
    """Check that the options for ensembles are given with one, and --dry-run without."""
    from oodcli.errors import InvalidInputError

    if ensemble and dry_run:
        raise InvalidInputError(
            "--dry-run is for one run; an ensemble needs the forward passes of its members: "
            f"ood score --run {next(iter(runs), 'RUN')} --dry-run"
        )
    if not ensemble and name is not None:
        raise InvalidInputError("--name is the name of an ensemble; add --ensemble, or remove it")
    if not ensemble and len(runs) > 1:
        raise InvalidInputError(
            f"{len(runs)} runs are named; score each of them in a call of its own, or all as an "
            "ensemble: --ensemble"
        )


def _check_alone(processes: "Processes") -> None:
    from oodcli.errors import InvalidInputError

    if processes.distributed:
        raise InvalidInputError(
            "an ensemble is scored by one process, from stored activations; compute those of each "
            "run with torchrun (ood score --run RUN), then score the ensemble without"
        )


def _score_file(
    path: Path, methods: Sequence[str], device: str, export: Path | None
) -> "FileScores | None":
    """Score the activations in a file; return None in all processes except the first."""
    from oodcli.cli.processes import job
    from oodcli.compute.compute import Compute
    from oodcli.workflows.score_file import FileRequest, score_file

    with job(device) as (processes, own_device, progress):
        if not processes.first:
            return None
        request = FileRequest(path, tuple(methods), Compute.of(own_device), export)
        return score_file(request, progress=progress)


def _print_passes(result: "ScoreResult") -> None:
    """Print the number of forward passes, and the block that NormRatio selected."""
    computed = sum(each.computed for each in result.passes)
    total = computed + sum(each.cached for each in result.passes)
    if computed == 0:
        print_stderr(f"no forward pass: all {total:,} activations were stored")
    else:
        print_stderr(
            f"forward pass: {counted(computed, 'image')} in {result.seconds:.1f} s; "
            f"{total - computed:,} were stored"
        )
    if result.normratio is not None:
        chosen = result.normratio
        block = chosen.blocks[chosen.selected]
        print_stderr(
            f"NormRatio selected block {block.index} ({block.name}) "
            f"on {chosen.n_images:,} of {chosen.of_images:,} training images"
            + ("" if chosen.clear else ", but its lead is within two standard errors")
        )


def _check_activation_options(options: Sequence[str]) -> None:
    """Check that no option without effect on a file of activations is given."""
    from oodcli.errors import InvalidInputError

    for name in options:
        if name in _RUN_OPTIONS:
            raise InvalidInputError(f"{name} has no effect on activations from a file; remove it")
