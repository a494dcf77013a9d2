"""``ood run``."""

from oodcli.cli.console import print_stderr, write_result
from oodcli.cli.options import (
    AmpOption,
    BatchOption,
    ColumnsOption,
    DataOption,
    DeviceOption,
    Format,
    FormatOption,
    FullOption,
    JpegDraftOption,
    OutputOption,
    SkipOption,
    StoreOption,
    WindowOption,
)
from oodcli.cli.train import (
    ArchOption,
    CheckOption,
    EpochsOption,
    InitOption,
    LrOption,
    MixingSetOption,
    NameOption,
    ObjectiveOption,
    OutlierBatchOption,
    OutliersOption,
    PretrainedOption,
    RecipeOption,
    SeedOption,
    SettingOption,
    TestOption,
    TrainBatchOption,
    ValOption,
    command_line,
)


def run(
    data: DataOption = "digits",
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
    set_: SettingOption = None,
    seed: SeedOption = 0,
    amp: AmpOption = False,
    name: NameOption = None,
    val_fraction: ValOption = 0.0,
    test_fraction: TestOption = None,
    score_batch_size: BatchOption = None,
    columns: ColumnsOption = None,
    check_images: CheckOption = False,
    window: WindowOption = None,
    jpeg_draft: JpegDraftOption = False,
    skip_unreadable: SkipOption = False,
    full: FullOption = False,
    format_: FormatOption = Format.TABLE,
    output: OutputOption = None,
    store: StoreOption = None,
) -> None:
    """Train, select a block, score and report in one command.

    A finished run with the same settings is not trained again.
    """
    print_stderr("starting ood run (the first import of torch takes a few seconds)")
    from oodcli.cli.progress import TerminalProgress
    from oodcli.cli.render.run import render_run
    from oodcli.data.opening import with_columns
    from oodcli.store.store import Store
    from oodcli.workflows.run import run_all
    from oodcli.workflows.train import TrainRequest

    ((data,),) = with_columns(columns, (data,))
    result = run_all(
        Store.at(store),
        TrainRequest(
            data=data,
            arch=arch,
            recipe=recipe,
            objective=objective,
            settings=tuple(set_ or ()),
            init=init,
            pretrained=pretrained,
            outliers=outliers,
            outlier_batch_size=outlier_batch_size,
            mixing_set=mixing_set,
            name=name,
            seed=seed,
            epochs=epochs,
            batch_size=batch_size,
            lr=lr,
            device=device,
            amp=amp,
            val_fraction=val_fraction,
            test_fraction=test_fraction,
            skip_unreadable=skip_unreadable,
            check_images=check_images,
            window=window,
            jpeg_draft=jpeg_draft,
        ),
        batch_size=score_batch_size,
        command=command_line(),
        progress=TerminalProgress(),
    )
    steps = ", ".join(f"{step} {seconds:.1f} s" for step, seconds in result.seconds.items())
    print_stderr(f"time: {steps}")
    write_result(render_run(result, format_, full=full, to_file=output is not None), output)
