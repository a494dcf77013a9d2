"""``ood import``."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from oodcli.cli import completion
from oodcli.cli.console import print_stdout
from oodcli.cli.options import (
    ColumnsOption,
    DataOption,
    DeviceOption,
    JpegDraftOption,
    SkipOption,
    StoreOption,
    WindowOption,
    three_numbers,
)
from oodcli.cli.train import NameOption, ValOption, command_line


class Keys(StrEnum):
    """How tensors of a file are matched to those of a network."""

    BY_NAME = "by-name"
    BY_ORDER = "by-order"


class Logits(StrEnum):
    """Which logits are used if the data have only some of the network's classes."""

    DATA = "data"
    ALL = "all"


def import_(
    context: typer.Context,
    data: DataOption,
    checkpoint: Annotated[
        Path | None,
        typer.Argument(
            help="File with the weights, as torch.save, pickle or safetensors wrote it; or with a "
            "whole network: ONNX, torch.export, TorchScript.",
            show_default=False,
        ),
    ] = None,
    arch: Annotated[
        str | None,
        typer.Option(
            "--arch",
            autocompletion=completion.architectures,
            metavar="ARCH[:KEY=VALUE,…]",
            help="Architecture: one of ood, such as resnet18:stem_padding=2, or torchvision:NAME, "
            "timm:NAME, hf:FOLDER, open_clip:MODEL:TAG, package.module:function [default: that of "
            "an ONNX file, a program of torch.export, or TorchScript].",
            show_default=False,
        ),
    ] = None,
    pretrained: Annotated[
        bool,
        typer.Option(
            "--pretrained",
            help="Import the published weights of a network of torchvision or timm instead of a "
            "file; with hf:OWNER/NAME and open_clip:MODEL:TAG, download what is not in the cache.",
        ),
    ] = False,
    key: Annotated[
        str | None,
        typer.Option(
            "--key",
            metavar="NAME",
            help="Where in the file the state dict lies, such as state_dict_ema "
            "[default: the most likely place].",
            show_default=False,
        ),
    ] = None,
    keys: Annotated[
        Keys,
        typer.Option(
            "--keys",
            help="Match tensors by name, also under the names of the usual public code, or by "
            "order and shape alone.",
        ),
    ] = Keys.BY_NAME,
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            metavar="NAME",
            help="Which output of a network with several heads the logits are, such as coarse or 1 "
            "[default: the one that ends in a linear layer].",
            show_default=False,
        ),
    ] = None,
    mean: Annotated[
        str | None,
        typer.Option(
            "--mean",
            help="Mean of the training pixels: one number or three [default: that of published "
            "weights, else 0.5].",
            show_default=False,
        ),
    ] = None,
    std: Annotated[
        str | None,
        typer.Option(
            "--std",
            help="Standard deviation of the training pixels: one number or three [default: as for "
            "--mean].",
            show_default=False,
        ),
    ] = None,
    image_size: Annotated[
        int | None,
        typer.Option(
            "--image-size",
            metavar="N",
            help="Height and width of the images in pixels [default: that of published weights or "
            "of the network; 32 for small images].",
            show_default=False,
        ),
    ] = None,
    resize: Annotated[
        str | None,
        typer.Option(
            "--resize",
            metavar="HOW[:FILTER]",
            help="exact, shorter-crop or shorter-crop:SIDE, and a filter: bilinear, bicubic, "
            "lanczos, nearest or bicubic-torchvision [default: as for --image-size].",
            show_default=False,
        ),
    ] = None,
    name: NameOption = None,
    val_fraction: ValOption = 0.0,
    test_fraction: Annotated[
        float | None,
        typer.Option(
            "--test-fraction",
            help="Share of the images to test on if the data have no parts; methods are fitted on "
            "the others [default: all are test images].",
            show_default=False,
        ),
    ] = None,
    classes: Annotated[
        Path | None,
        typer.Option(
            "--classes",
            metavar="FILE|imagenet",
            help="Names of the classes, one per line, in the order of the network's outputs; more "
            "than the data have, where the data are a part of them; imagenet for the 1,000 wnids "
            "[default: the order that the network states, else that of the data].",
            show_default=False,
        ),
    ] = None,
    logits: Annotated[
        Logits,
        typer.Option(
            "--logits",
            help="Which logits of a network with more classes than the data count: those of the "
            "data's classes, or all.",
        ),
    ] = Logits.DATA,
    probe: Annotated[
        bool,
        typer.Option(
            "--probe",
            help="Fit a linear probe on the training images as the last layer: for an encoder "
            "without a classifier, or with one for other classes.",
        ),
    ] = False,
    class_names: Annotated[
        Path | None,
        typer.Option(
            "--class-names",
            metavar="FILE",
            help="What the classes are called in the prompts of a zero-shot classifier "
            "(open_clip:…): one name per line in the order of the classes, or lines of CLASS NAME "
            "[default: their names in the data].",
            show_default=False,
        ),
    ] = None,
    prompts: Annotated[
        str | None,
        typer.Option(
            "--prompts",
            metavar="FILE|TEMPLATE",
            help="Templates of a zero-shot classifier: a file with one per line, {} in place of "
            "the class; a template; or imagenet80, the 80 of CLIP's authors "
            "[default: 'a photo of a {}.'].",
            show_default=False,
        ),
    ] = None,
    negative_words: Annotated[
        list[Path] | None,
        typer.Option(
            "--negative-words",
            metavar="FILE",
            help="Words that name no class, one per line, for the method neglabel; may be given "
            "several times.",
            show_default=False,
        ),
    ] = None,
    negative_prompt: Annotated[
        list[str] | None,
        typer.Option(
            "--negative-prompt",
            metavar="TEMPLATE",
            help="Template of these words: one, or one for each file [default: that of the "
            "classes].",
            show_default=False,
        ),
    ] = None,
    features_only: Annotated[
        bool,
        typer.Option(
            "--features-only",
            help="Leave the last layer aside: only methods that need no logits are available "
            "[default: if the weights have no last layer].",
            show_default=False,
        ),
    ] = False,
    device: DeviceOption = "auto",
    columns: ColumnsOption = None,
    window: WindowOption = None,
    jpeg_draft: JpegDraftOption = False,
    skip_unreadable: SkipOption = False,
    store: StoreOption = None,
) -> None:
    """Import a trained network from a checkpoint."""
    from oodcli.cli.progress import TerminalProgress
    from oodcli.data.opening import with_columns
    from oodcli.specs import names_folder
    from oodcli.store.store import Store
    from oodcli.workflows.import_request import ImportRequest
    from oodcli.workflows.importing import import_checkpoint

    if checkpoint is not None and pretrained:
        raise typer.BadParameter(
            "give either a checkpoint or --pretrained, not both", param_hint="CHECKPOINT"
        )
    if arch is None and checkpoint is None:
        context.fail("Missing option '--arch': give it, or a file that holds a whole network.")
    if checkpoint is None and not (pretrained or names_folder(arch or "")):
        context.fail(
            "Missing argument 'CHECKPOINT': give a checkpoint, --pretrained or --arch hf:FOLDER."
        )
    ((data,),) = with_columns(columns, (data,))
    result = import_checkpoint(
        Store.at(store),
        ImportRequest(
            checkpoint,
            arch=arch or "",
            output=output,
            data=data,
            key=key,
            by_order=keys is Keys.BY_ORDER,
            name=name,
            mean=None if mean is None else three_numbers("--mean", mean),
            std=None if std is None else three_numbers("--std", std),
            image_size=image_size,
            resize=resize,
            window=window,
            jpeg_draft=jpeg_draft,
            val_fraction=val_fraction,
            test_fraction=test_fraction,
            classes=classes,
            probe=probe,
            class_names=class_names,
            prompts=prompts,
            negative_words=tuple(negative_words or ()),
            negative_prompts=tuple(negative_prompt or ()),
            features_only=features_only,
            logits="all" if logits is Logits.ALL else "data",
            device=device,
            skip_unreadable=skip_unreadable,
            download=pretrained,
        ),
        command=command_line(),
        progress=TerminalProgress(),
    )
    print_stdout(result.run)
