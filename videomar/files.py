"""Files to read: only those that have an end, under names of any bytes. Knows nothing of what they hold."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from videomar.unfinished import scratch


def regular(path: Path) -> Path:
    """The same path; raises OSError for a pipe, socket or device, which would be waited for, and for no file at all."""
    kind = os.stat(path).st_mode
    if not stat.S_ISREG(kind) and not stat.S_ISDIR(kind):
        raise OSError(errno.EINVAL, "a pipe, socket or device; copy it to a file and give that", str(path))
    return path


@contextmanager
def plain(path: Path) -> Iterator[Path]:
    """A path that libraries can take which want every name in UTF-8: the same, or a link to it elsewhere for a while.

    Linked is the directory, since graphs name the files beside them.
    """
    try:
        str(path).encode()
        yield path
    except UnicodeEncodeError:
        with scratch("link") as folder:
            (folder / "to").symlink_to(path.resolve().parent, target_is_directory=True)
            yield folder / "to" / path.name
