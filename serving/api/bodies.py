"""The body of a request -> fields and the bytes of an upload. Nothing that is named in it is ever opened or fetched."""

from __future__ import annotations

import base64
import binascii
import json
from typing import Any, NoReturn

from fastapi import Request
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from videomar.serving.api.errors import ApiError

REFERENCE = "input_reference"
_MOST_FIELDS, _LONGEST_FIELD = 64, 1 << 20


async def read_body(request: Request) -> tuple[dict[str, Any], bytes | None]:
    """Fields by name and the input's bytes, of JSON or of a form; raises ApiError."""
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind == "application/json":
        return _of_json(await request.body())
    if kind in ("multipart/form-data", "application/x-www-form-urlencoded"):
        return await _of_form(request)
    raise ApiError(
        415, f"the content type is {kind!r:.80}, expected application/json or multipart/form-data", code="content_type"
    )


def _of_json(body: bytes) -> tuple[dict[str, Any], bytes | None]:
    try:
        fields = json.loads(body, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise ApiError(400, "the body is not JSON, expected an object with the request's fields", code="json") from None
    if not isinstance(fields, dict):
        raise ApiError(400, f"the body is a JSON {type(fields).__name__}, expected an object", code="json")
    reference = fields.pop(REFERENCE, None)
    return fields, None if reference is None else _data_url(reference)


def _no_constant(name: str) -> NoReturn:
    raise ValueError(name)


async def _of_form(request: Request) -> tuple[dict[str, Any], bytes | None]:
    try:
        form = await request.form(max_files=1, max_fields=_MOST_FIELDS, max_part_size=_LONGEST_FIELD)
    except (ApiError, HTTPException):
        raise
    except Exception:  # the parser's own kinds
        raise ApiError(400, "the form cannot be read, expected multipart/form-data", code="form") from None
    fields: dict[str, Any] = {}
    data: bytes | None = None
    try:
        for name, value in form.multi_items():
            # Clients write nested fields with brackets: input_reference[image_url].
            name = REFERENCE if name in (f"{REFERENCE}[image_url]", f"{REFERENCE}[]") else name
            if name in fields or (name == REFERENCE and data is not None):
                raise ApiError(400, f"{name:.60} is given twice, expected once", name[:60], "invalid_value")
            if isinstance(value, UploadFile):
                if name != REFERENCE:
                    raise ApiError(400, f"{name:.60} is a file, expected text", name[:60], "invalid_value")
                data = await value.read()
            elif name == REFERENCE:
                data = _data_url(value)
            else:
                fields[name] = value
    finally:
        await form.close()
    return fields, data


def _data_url(reference: Any) -> bytes:
    """The bytes of a data URL, or of an object with one; another URL or a path is refused, not looked at."""
    if isinstance(reference, dict):
        if set(reference) != {"image_url"}:
            raise ApiError(
                400, f"{REFERENCE} is an object, expected the one key image_url with a data URL", REFERENCE, "invalid"
            )
        reference = reference["image_url"]
    if not isinstance(reference, str) or not reference.startswith("data:"):
        raise ApiError(
            400,
            f"{REFERENCE} is no data URL, expected data:image/png;base64,... or a file; URLs and paths are not opened",
            REFERENCE,
            "invalid_value",
        )
    head, comma, text = reference.partition(",")
    try:
        if not comma or not head.endswith(";base64"):
            raise ValueError
        return base64.b64decode(text, validate=True)
    except (ValueError, binascii.Error):
        raise ApiError(400, f"{REFERENCE} is no base64 data URL, expected one", REFERENCE, "invalid_value") from None
