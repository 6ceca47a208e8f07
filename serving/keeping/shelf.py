"""Where pictures and finished clips lie that several machines share without a common folder: any address of fsspec's.

Knows nothing of jobs but their ids.
"""

from __future__ import annotations

import os
import uuid
from pathlib import Path
from urllib.parse import urlsplit

import fsspec

from videomar.errors import InputError


class Shelf:
    """Files by job and kind behind a URL such as s3://bucket/clips."""

    def __init__(self, url: str) -> None:
        """Raises InputError where it cannot be reached."""
        try:
            self._files, self._root = fsspec.core.url_to_fs(url)
            self._files.makedirs(self._root, exist_ok=True)
        except Exception as error:  # of whatever kind the protocol's package has
            shown = urlsplit(url)._replace(netloc=urlsplit(url).netloc.rpartition("@")[2]).geturl()
            raise InputError(
                f"{shown} cannot be used ({error}), expected an address of fsspec's such as s3://bucket/clips; check "
                "address, rights and the protocol's package"
            ) from None

    def put(self, id: str, file: Path) -> None:
        """Keep a job's file under its name."""
        self._files.makedirs(f"{self._root}/{id}", exist_ok=True)
        self._files.put_file(str(file), f"{self._root}/{id}/{file.name}")

    def get(self, id: str, file: Path) -> None:
        """Bring a job's file to where it is missing, whole or not at all; nothing where there is none."""
        name = f"{self._root}/{id}/{file.name}"
        if not self._files.exists(name):
            return
        file.parent.mkdir(exist_ok=True)
        part = file.with_name(f".{uuid.uuid4().hex}")
        try:
            self._files.get_file(name, str(part))
            os.replace(part, file)
        except FileNotFoundError:  # removed in between
            pass
        finally:
            part.unlink(missing_ok=True)

    def drop(self, id: str) -> None:
        """Remove a job's files."""
        try:
            self._files.rm(f"{self._root}/{id}", recursive=True)
        except FileNotFoundError:
            pass
