"""A clip at a glance: some of its frames in rows. Knows nothing of files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from videomar.runtime.media import contact_sheet

MOST, COLUMNS, WIDTH = 40, 8, 1600  # frames of a sheet, in a row, and about so many pixels of a row


class Sheet:
    """Keeps every frame that goes by, of a long clip every second, third and so on."""

    def __init__(self, frames: int) -> None:
        self._every, self._kept = -(-frames // MOST), list[np.ndarray]()

    def seeing(self, frames: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """The same frames, [h, w, 3] uint8."""
        for index, frame in enumerate(frames):
            if index % self._every == 0:
                self._kept.append(frame)
            yield frame

    def picture(self) -> np.ndarray:
        """The frames seen, in rows: [height, width, 3] uint8; small ones enlarged, large ones as they are."""
        scale = max(1, WIDTH // (COLUMNS * self._kept[0].shape[1]))
        return contact_sheet(np.stack(self._kept), COLUMNS, scale)
