"""Small DICOM and NIfTI files with names of patients in them."""

from pathlib import Path
from typing import Any

import numpy as np

PATIENT = "Doe^Jane"


def write_dicom(path: Path, values: np.ndarray, *, syntax: str = "", **elements: Any) -> Path:
    """Write stored values ``(h, w)``, ``(n, h, w)`` or ``(h, w, 3)`` with elements by keyword."""
    import pydicom
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = CTImageStorage
    uid = generate_uid(entropy_srcs=[str(path)])
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = uid
    dataset.PatientName = PATIENT
    colour = values.ndim == 3 and values.shape[-1] == 3
    if values.ndim == 3 and not colour:
        dataset.NumberOfFrames = len(values)
    dataset.Rows, dataset.Columns = values.shape[:2] if colour else values.shape[-2:]
    dataset.SamplesPerPixel = 3 if colour else 1
    dataset.PhotometricInterpretation = "RGB" if colour else "MONOCHROME2"
    if colour:
        dataset.PlanarConfiguration = 0
    dataset.BitsAllocated = 8 * values.dtype.itemsize
    dataset.BitsStored = elements.pop("BitsStored", dataset.BitsAllocated)
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(values.dtype.kind == "i")
    dataset.PixelData = values.tobytes()
    for name, value in elements.items():
        setattr(dataset, name, value)
    if syntax:
        dataset.compress(syntax)
    path.parent.mkdir(parents=True, exist_ok=True)
    pydicom.dcmwrite(path, dataset, enforce_file_format=True)
    return path


def write_nifti(path: Path, voxels: np.ndarray, affine: np.ndarray, **header: float) -> Path:
    """Write voxels with an affine, and fields of the header by keyword."""
    import nibabel

    image = nibabel.Nifti1Image(voxels, affine)
    for name, value in header.items():
        image.header[name] = value
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(image, path)
    return path
