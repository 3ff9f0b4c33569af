"""What an update's file must still be when it is merged; errors name the participant."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from coordinator.aggregation.files import ITEM, VectorFile
from wire import RefusedError


class UpdateRefused(RefusedError):
    """A participant's update can't enter the model; ``participant`` says whose.

    Codes: "update-missing" (no file), "update-shape" (not 4 bytes for each parameter), "update-norm" (too long),
    "examples-invalid" (a negative number of examples).
    """

    def __init__(self, code: str, participant: str, message: str, hint: str = "") -> None:
        super().__init__(code, message, hint)
        self.participant = participant


def open_update(path: Path, dimension: int, participant: str, *, keep_open: bool = True) -> VectorFile:
    """Open an update of ``dimension`` float32 numbers.

    Raises:
        UpdateRefused: "update-missing" or "update-shape".
    """
    try:
        file = VectorFile(path, keep_open=keep_open)
    except FileNotFoundError as error:
        raise UpdateRefused(
            "update-missing",
            participant,
            f"The update of {participant} is not on the coordinator's disk ({path.name}).",
            "Don't delete files in the coordinator's blob folder while a run goes on.",
        ) from error
    if file.size != ITEM * dimension:
        file.close()
        raise _shape(participant, file.size, dimension)
    return file


def read_update(file: VectorFile, start: int, out: NDArray[np.float32], participant: str) -> None:
    """Fill ``out`` [m] from coordinate ``start`` on.

    Raises:
        UpdateRefused: "update-shape" where the file has become shorter.
    """
    try:
        file.read(start, out)
    except EOFError as error:
        raise _shape(participant, file.path.stat().st_size, file.size // ITEM) from error


def _shape(participant: str, size: int, dimension: int) -> UpdateRefused:
    return UpdateRefused(
        "update-shape",
        participant,
        f"The update of {participant} has {size} bytes where {dimension} parameters need {ITEM * dimension}.",
        "The file was damaged on the coordinator's disk, or the participant trains another model.",
    )
