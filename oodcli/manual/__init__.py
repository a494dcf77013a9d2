"""The manual: one Markdown page per topic, served by ``ood help TOPIC``.

``python -m oodcli.manual`` writes the parts of the pages that come from registries and records.
"""

from pathlib import Path

# In the order in which a newcomer reads them.
TOPICS = {
    "start": "the first command, its table, and all commands",
    "data": "images of your own, published data sets, benchmarks",
    "networks": "architectures, checkpoints, activations from elsewhere",
    "training": "objectives, recipes, resuming, large sets, several GPUs",
    "methods": "every method, third-party methods, writing one",
    "selection": "choosing parameters and methods without OOD images",
    "screening": "incoming images: ood predict, Python, ONNX files",
    "reports": "conventions, tables, statistics, published values, plots",
    "json": "every object and file that programs read",
    "measurements": "accuracy, speed and memory, with commands and hardware",
    "architecture": "how the code is organised; the way of one image through it",
}


def page(topic: str) -> str:
    """Return a page of the manual as Markdown.

    Parameters
    ----------
    topic
        One of `TOPICS`.
    """
    return Path(__file__).with_name(f"{topic}.md").read_text(encoding="utf-8")
