"""The page at `/`: one file, sent with a policy that lets it load nothing but what this server answers."""

from __future__ import annotations

import base64
import hashlib
import re
from importlib.resources import files

from fastapi import APIRouter
from fastapi.responses import HTMLResponse

from videomar.serving.site import Site


def routes(site: Site) -> APIRouter:
    """/ and nothing else."""
    router = APIRouter()
    text = files("videomar.serving").joinpath("page.html").read_text("utf-8")
    headers = {"content-security-policy": policy(text)}

    @router.get("/")
    def page() -> HTMLResponse:
        return HTMLResponse(text, headers=headers)

    return router


def policy(text: str) -> str:
    """Only the page's own script and style run, named by their hashes; it talks to its server alone."""

    def hashes(tag: str) -> str:
        blocks = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        digests = (base64.b64encode(hashlib.sha256(block.encode()).digest()).decode() for block in blocks)
        return " ".join(f"'sha256-{digest}'" for digest in digests)

    return (
        f"default-src 'none'; script-src {hashes('script')}; style-src {hashes('style')}; connect-src 'self'; "
        "img-src blob: data:; media-src blob:; form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
    )
