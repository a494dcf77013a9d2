"""``ood train``."""

import shlex
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from oodcli.cli import completion
from oodcli.cli.console import print_stderr, print_stdout
from oodcli.cli.options import (
    AmpOption,
    ColumnsOption,
    DeviceOption,
    JpegDraftOption,
    SkipOption,
    StoreOption,
    WindowOption,
    given_options,
)

if TYPE_CHECKING:
    from oodcli.workflows.train import TrainResult

ArchOption = Annotated[
    str | None,
    typer.Option(
        "--arch",
        autocompletion=completion.architectures,
        metavar="ARCH[:KEY=VALUE,…]",
        help="Architecture, such as resnet18:stem_padding=2 [default: that of the recipe for the "
        "data set, or resnet18].",
        show_default=False,
    ),
]
SeedOption = Annotated[
    int, typer.Option("--seed", min=0, help="Seed of all randomness in training.")
]
EpochsOption = Annotated[
    int | None,
    typer.Option("--epochs", help="Epochs of training [default: that of the recipe]."),
]
TrainBatchOption = Annotated[
    int | None,
    typer.Option("--batch-size", help="Images per training step [default: that of the recipe]."),
]
LrOption = Annotated[
    float | None, typer.Option("--lr", help="Initial learning rate [default: that of the recipe].")
]
RecipeOption = Annotated[
    str | None,
    typer.Option(
        "--recipe",
        autocompletion=completion.recipes,
        metavar="NAME",
        help="A published recipe, see: ood recipes list [default: chosen by objective and "
        "network].",
        show_default=False,
    ),
]
ObjectiveOption = Annotated[
    str | None,
    typer.Option(
        "--objective",
        autocompletion=completion.objectives,
        metavar="NAME[:KEY=VALUE,…]",
        help=f"{', '.join(completion.OBJECTIVES)} [default: that of the recipe].",
        show_default=False,
    ),
]
SettingOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change a value of the recipe, see: ood recipes show; can be repeated.",
        show_default=False,
    ),
]
InitOption = Annotated[
    str | None,
    typer.Option(
        "--init",
        autocompletion=completion.runs,
        metavar="RUN|FILE",
        help="Start from the weights of a run or checkpoint [default: random weights].",
        show_default=False,
    ),
]
PretrainedOption = Annotated[
    bool,
    typer.Option(
        "--pretrained",
        help="Start from the published weights of a network of torchvision or timm; with --init, "
        "from a file of such weights or another weight set of torchvision, such as "
        "IMAGENET1K_V2.",
    ),
]
OutliersOption = Annotated[
    str | None,
    typer.Option(
        "--outliers",
        autocompletion=completion.outliers,
        metavar="NAME|FOLDER|FILE|KIND",
        help="For objectives that are trained with outliers: images that belong to no class, or "
        f"{', '.join(completion.OUTLIERS)}, made from the training images.",
        show_default=False,
    ),
]
OutlierBatchOption = Annotated[
    int | None,
    typer.Option(
        "--outlier-batch-size",
        min=1,
        metavar="N",
        help="Outliers per training step [default: that of the recipe].",
        show_default=False,
    ),
]
MixingSetOption = Annotated[
    str | None,
    typer.Option(
        "--mixing-set",
        autocompletion=completion.images,
        metavar="NAME|FOLDER|FILE",
        help="For recipes with the augmentation pixmix: pictures that images are mixed with "
        "[default: the published set pixmix if it is in the store, else fractals].",
        show_default=False,
    ),
]
NameOption = Annotated[
    str | None,
    typer.Option("--name", metavar="RUN", help="Name of the run [default: data, network, seed]."),
]
ValOption = Annotated[
    float,
    typer.Option("--val-fraction", help="Share of the training images to hold out for validation."),
]
TestOption = Annotated[
    float | None,
    typer.Option(
        "--test-fraction",
        help="Share of the images to hold out for testing if the data have no test images "
        "[default: 0.2].",
        show_default=False,
    ),
]

CheckOption = Annotated[
    bool,
    typer.Option(
        "--check-images",
        help="Decode all images once before training, to find unreadable ones, also where images "
        "are decoded on the fly.",
    ),
]

# Options that are allowed with --resume and without --data.
_RESUME_OPTIONS = (
    "--resume", "--run", "--name", "--device", "--data-workers", "--check-images", "--per-class",
    "--store",
)  # fmt: skip


def train(
    context: typer.Context,
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            autocompletion=completion.images,
            metavar="NAME|FOLDER|FILE",
            help="A known data set; a folder with <class>/…, or with train/<class>/… and "
            "test/<class>/…; arrays, a table, an archive; or train=PATH,test=PATH.",
            show_default=False,
        ),
    ] = None,
    recipe: RecipeOption = None,
    objective: ObjectiveOption = None,
    arch: ArchOption = None,
    init: InitOption = None,
    pretrained: PretrainedOption = False,
    outliers: OutliersOption = None,
    outlier_batch_size: OutlierBatchOption = None,
    mixing_set: MixingSetOption = None,
    device: DeviceOption = "auto",
    epochs: EpochsOption = None,
    batch_size: TrainBatchOption = None,
    lr: LrOption = None,
    momentum: Annotated[
        float | None, typer.Option("--momentum", help="Momentum [default: that of the recipe].")
    ] = None,
    weight_decay: Annotated[
        float | None,
        typer.Option(
            "--weight-decay", help="Weight decay (L2 penalty) [default: that of the recipe]."
        ),
    ] = None,
    set_: SettingOption = None,
    seed: SeedOption = 0,
    seeds: Annotated[
        str | None,
        typer.Option(
            "--seeds",
            metavar="N,N,…",
            help="Train one run per seed, such as 0,1,2.",
        ),
    ] = None,
    image_size: Annotated[
        int | None,
        typer.Option(
            "--image-size",
            metavar="N",
            help="Height and width of the images in pixels [default: chosen by images and "
            "network].",
        ),
    ] = None,
    resize: Annotated[
        str | None,
        typer.Option(
            "--resize",
            metavar="HOW[:FILTER]",
            help="exact, shorter-crop or shorter-crop:SIDE, and a filter: bilinear, bicubic, "
            "lanczos, nearest or bicubic-torchvision [default: that of published weights, or of "
            "the data].",
        ),
    ] = None,
    amp: AmpOption = False,
    compile_: Annotated[
        bool,
        typer.Option(
            "--compile",
            help="Let torch compile the network before the first step; for long training.",
        ),
    ] = False,
    name: NameOption = None,
    run: Annotated[
        str | None,
        typer.Option(
            "--run",
            autocompletion=completion.runs,
            metavar="RUN",
            help="With --resume: the unfinished run to resume.",
        ),
    ] = None,
    val_fraction: ValOption = 0.0,
    test_fraction: TestOption = None,
    per_class: Annotated[
        bool, typer.Option("--per-class", help="Also print the accuracy of every class, to stderr.")
    ] = False,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Resume an interrupted run after its last finished epoch."),
    ] = False,
    scale_batch: Annotated[
        bool,
        typer.Option(
            "--scale-batch",
            help="Under torchrun, use the recipe's batch size per process and scale the learning "
            "rate by the number of processes [default: the processes share one batch].",
        ),
    ] = False,
    data_workers: Annotated[
        int | None,
        typer.Option(
            "--data-workers",
            min=0,
            metavar="N",
            help="Number of processes that decode images which do not fit in memory; 0 uses "
            "threads [default: one per core, at most 16].",
            show_default=False,
        ),
    ] = None,
    check_images: CheckOption = False,
    columns: ColumnsOption = None,
    window: WindowOption = None,
    jpeg_draft: JpegDraftOption = False,
    skip_unreadable: SkipOption = False,
    store: StoreOption = None,
) -> None:
    """Train a classifier by a published recipe.

    Every value of the recipe can be changed: ood recipes show, --set KEY=VALUE.
    """
    from oodcli.cli.processes import job
    from oodcli.data.opening import with_columns
    from oodcli.store.store import Store
    from oodcli.workflows.train import TrainRequest, resume_run, train_seeds
    from oodcli.workflows.train import train as train_workflow

    opened_store = Store.at(store)
    _check_usage(context)
    numbers = None if seeds is None else _parse_seeds(seeds)
    with job(device) as (processes, own_device, progress):
        if data is None:
            results = [
                resume_run(
                    opened_store,
                    name if run is None else run,
                    device=own_device,
                    progress=progress,
                    processes=processes,
                    data_workers=data_workers,
                    check_images=check_images,
                )
            ]
        else:
            ((data,),) = with_columns(columns, (data,))
            request = TrainRequest(
                data=data,
                arch=arch,
                name=name,
                seed=seed,
                recipe=recipe,
                objective=objective,
                settings=tuple(set_ or ()),
                init=init,
                pretrained=pretrained,
                outliers=outliers,
                outlier_batch_size=outlier_batch_size,
                mixing_set=mixing_set,
                image_size=image_size,
                resize=resize,
                window=window,
                jpeg_draft=jpeg_draft,
                epochs=epochs,
                batch_size=batch_size,
                lr=lr,
                momentum=momentum,
                weight_decay=weight_decay,
                device=own_device,
                amp=amp,
                val_fraction=val_fraction,
                test_fraction=test_fraction,
                skip_unreadable=skip_unreadable,
                check_images=check_images,
                compile=compile_,
                scale_batch=scale_batch,
                data_workers=data_workers,
            )
            if numbers is not None:
                results = train_seeds(
                    opened_store,
                    request,
                    numbers,
                    resume=resume,
                    command=command_line(),
                    progress=progress,
                    processes=processes,
                )
            else:
                results = [
                    train_workflow(
                        opened_store,
                        request,
                        resume=resume,
                        command=command_line(),
                        progress=progress,
                        processes=processes,
                    )
                ]
        if processes.first:
            if per_class:
                _print_accuracies(results)
            print_stdout("\n".join(each.run for each in results))


def _print_accuracies(results: "Sequence[TrainResult]") -> None:
    from oodcli.cli.render.accuracy import accuracy_table
    from oodcli.cli.render.formats.terminal import write_terminal

    for each in results:
        tested = each.record.training.get("test")
        if tested is None:
            print_stderr(f"{each.run}: there are no test images")
        else:
            table = accuracy_table(each.run, each.record.class_names, tested)
            for line in write_terminal(table, to_file=True).splitlines():
                print_stderr(line)


def _check_usage(context: typer.Context) -> None:
    """Check that no options contradict each other or have no effect.

    Raises
    ------
    typer.BadParameter
        If there are any; a usage error if ``--data`` is missing.
    """
    options = given_options(context)
    if "--run" in options and "--resume" not in options:
        raise typer.BadParameter(
            "it requires --resume; to name a new run, use --name", param_hint="--run"
        )
    for one, other in (("--run", "--data"), ("--run", "--name"), ("--seed", "--seeds")):
        if one in options and other in options:
            raise typer.BadParameter(f"cannot be combined with {other}", param_hint=one)
    if "--data" in options:
        return
    if "--resume" not in options:
        context.fail("Missing option '--data': the data set to train on.")
    for option in options:
        if option not in _RESUME_OPTIONS:
            raise typer.BadParameter(
                "cannot be combined with --resume: a resumed run keeps its settings",
                param_hint=option,
            )


def _parse_seeds(text: str) -> list[int]:
    try:
        return [int(piece) for piece in text.split(",")]
    except ValueError:
        raise typer.BadParameter(
            f"{text!r} is not a list of numbers such as 0,1,2", param_hint="--seeds"
        ) from None


def command_line() -> str:
    """Return the command line of this process, quoted for a shell."""
    return shlex.join(["ood", *sys.argv[1:]])
