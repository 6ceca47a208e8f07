"""Errors in the API's form: {"error": {"message", "type", "param", "code"}}. Never a traceback."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from videomar.errors import UserError

log = logging.getLogger("videomar.serving")
_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class ApiError(Exception):
    """What a client did, or may not do, with its HTTP status."""

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code, self.headers = status, message, param, code, headers

    def response(self) -> JSONResponse:
        """As the API's clients read it."""
        kind = _TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        error = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return JSONResponse({"error": error}, self.status, self.headers)


def no_video(id: str) -> ApiError:
    """There is no such job, or it is over."""
    return ApiError(404, f"there is no video {id!r:.80}; it may have been deleted or expired", "video_id", "not_found")


def install(app: FastAPI) -> None:
    """Answer every exception in the API's form."""

    @app.exception_handler(ApiError)
    async def refused(request: Request, error: ApiError) -> JSONResponse:
        return error.response()

    @app.exception_handler(UserError)
    async def unusable(request: Request, error: UserError) -> JSONResponse:
        return ApiError(400, str(error), code="invalid_value").response()

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> JSONResponse:
        text = {404: "there is no such page", 405: "this address has no such method"}.get(error.status_code)
        return ApiError(error.status_code, text or str(error.detail), headers=error.headers).response()

    @app.exception_handler(Exception)
    async def ours(request: Request, error: Exception) -> JSONResponse:
        log.exception("%s %s has failed", request.method, request.url.path, exc_info=error)
        return ApiError(500, "the server has failed at this; its log says why", code="server_error").response()
