"""Sources whose JPEG files are decoded at a reduced size, for a resizing that asks for drafts."""

from dataclasses import replace

from oodcli.data.dataset import Joined, Rows
from oodcli.data.decoding.encoded import Drafted, EncodedSource
from oodcli.data.decoding.files import FileSource
from oodcli.data.decoding.scaling import Resizing
from oodcli.images import ImageSource


def drafted(source: ImageSource, resizing: Resizing) -> ImageSource:
    """Return a source that decodes its images for a resizing.

    Parameters
    ----------
    source
        The images. Arrays, and files that are not JPEG, are as they were.
    resizing
        How the images will be resized; without drafts the source is returned as it is.

    Notes
    -----
    The fingerprint is that of the source: who stores the pixels names the resizing beside it.
    A source of a third-party reader that decodes its images itself is not changed either; one that
    derives from :class:`oodcli.data.decoding.encoded.EncodedSource` is.
    """
    if not resizing.way.draft:
        return source
    if isinstance(source, FileSource):
        return replace(source, to=resizing)
    if isinstance(source, EncodedSource):
        return Drafted(source, resizing)
    if isinstance(source, Joined):
        return Joined(drafted(source.first, resizing), drafted(source.second, resizing))
    if isinstance(source, Rows):
        return Rows(drafted(source.source, resizing), source.rows)
    return source
