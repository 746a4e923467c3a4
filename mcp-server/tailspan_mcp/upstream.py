"""An HTTP API that tools ask: JSON in, JSON out, within bounds. What goes wrong says what to do next."""

import json
import re
from importlib.metadata import version
from typing import Any, Final, Literal

import anyio
import httpx2
from mcp.server.mcpserver.exceptions import ToolError

MAX_BYTES: Final = 5_000_000
MAX_REDIRECTS: Final = 3
USER_AGENT: Final = f"tailspan-mcp/{version('tailspan-mcp')}"
GATEWAY: Final = (502, 504)
REACHES_NOBODY: Final = (*GATEWAY, 503)
MAX_PAGE: Final = 20_000
# Servers of applications: no proxy puts one of these into an answer of its own.
APPLICATION: Final = re.compile(
    r"uvicorn|hypercorn|granian|gunicorn|daphne|waitress|werkzeug|simplehttp|tornado|aiohttp|kestrel|jetty|puma|webrick",
    re.I,
)
# What proxies' own pages have: nginx and its kin, Apache, HAProxy, Cloudflare, Envoy.
SIGNED: Final = re.compile(
    rb"<center>(nginx|openresty|cloudflare)[^<]*</center>|<address>Apache[^<]*</address>"
    rb"|<html><body><h1>\d{3} [^<]*</h1>\n|cf-error-details|^upstream connect error|^no healthy upstream"
)


class Upstream:
    """`name` and `fix` are for messages: who this is, and what helps where it does not answer."""

    def __init__(self, name: str, client: httpx2.AsyncClient, fix: str, timeout_s: float = 30.0) -> None:
        self.name, self.fix, self.timeout_s = name, fix, timeout_s
        self._client = client
        client.headers["User-Agent"] = USER_AGENT  # by which these calls are told from people's

    async def get(self, path: str, **query: object) -> Any:
        """The JSON at a path; parameters that are None are left out. Raises ToolError."""
        return await self.ask("GET", path, query)

    async def ask(
        self, method: str, path: str, query: dict[str, Any], body: object = None, timeout_s: float | None = None
    ) -> Any:
        """The JSON that a request is answered with. Raises ToolError."""
        seconds = timeout_s or self.timeout_s
        given = {key: value for key, value in query.items() if value is not None}
        request = self._client.build_request(method, path, params=given, json=body)
        what = f"{method} {path}"
        try:
            with anyio.fail_after(seconds):
                response, content = await self._follow(request)
        except (TimeoutError, httpx2.TimeoutException):
            raise ToolError(f"{self.name} did not answer {what} within {seconds:g} s. {self.fix}") from None
        except httpx2.HTTPError as problem:
            why = str(problem) or type(problem).__name__
            raise ToolError(f"{self.name} cannot be asked at {self._client.base_url}: {why}. {self.fix}") from None
        if response.is_success and (found := _parsed(content)) is not None:
            return found
        raise ToolError(self._refused(what, response, content))

    async def close(self) -> None:
        await self._client.aclose()

    async def _follow(self, request: httpx2.Request) -> tuple[httpx2.Response, bytes]:
        """Redirects are followed on the same host alone: elsewhere its secrets are nobody's business."""
        for _ in range(MAX_REDIRECTS + 1):
            response = await self._client.send(request, stream=True)
            try:
                content = await self._read(response)
            finally:
                await response.aclose()
            onwards = response.next_request
            if onwards is None:
                return response, content
            if _place(onwards.url) != _place(request.url):
                raise ToolError(
                    f"{self.name} redirects {request.method} {request.url.path} to {onwards.url.host}, which is "
                    "not followed. Give the address it redirects to as the url."
                )
            request = onwards
        raise ToolError(f"{self.name} redirects {request.url.path} in circles.")

    async def _read(self, response: httpx2.Response) -> bytes:
        content = bytearray()
        async for piece in response.aiter_bytes():
            content += piece
            if len(content) > MAX_BYTES:
                raise ToolError(f"{self.name} answers with more than {MAX_BYTES // 10**6} MB. Ask for less.")
        return bytes(content)

    def _refused(self, what: str, response: httpx2.Response, content: bytes) -> str:
        status = response.status_code
        if response.is_success:
            kind = response.headers.get("content-type", "no type")
            return f"{self.name} answered {what} with {kind} where JSON was expected: is the path right? {self.fix}"
        author, said = author_of(response, content), detail(content)
        if author == "service":
            return f"{self.name} itself answered {what} with {status}: {said}{HINTS.get(status, '')}"
        server = response.headers.get("server")
        proxy = f"proxy in front of {self.name}{f' ({server})' if server else ''}"
        if author == "unknown":
            return f"{self.name} or a {proxy} answered {what} with {status}: {said} {UNTOLD}"
        if status in REACHES_NOBODY:
            return f"The {proxy} does not reach it: {status} to {what}. {self.fix}"
        return f"The {proxy} refused {what} with {status}; {self.name} itself never saw it. {LET_THROUGH}"


LET_THROUGH: Final = (
    "Let this path through in the proxy's configuration (nginx: a location for it); its error log says more."
)
UNTOLD: Final = "Which of them cannot be known from that: their logs tell."
HINTS: Final = {
    401: " It wants credentials: tailspan's are TAILSPAN_TOKEN, a service's are headers in the settings.",
    403: " Who asks is not allowed there.",
    404: " There is no such path or thing.",
}


def _place(url: httpx2.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port


def _parsed(content: bytes) -> Any:
    """None for what is no JSON object or list. What JSON allows and no UTF-8 has is replaced; NaN is null."""
    try:
        found = readable(json.loads(content, parse_constant=lambda _: None))
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict | list) else None


def readable(found: Any) -> Any:
    """Without lone surrogates, which JSON has as escapes: nobody could be sent them."""
    text = json.dumps(found, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.loads(text.encode("utf-16", "surrogatepass").decode("utf-16", "replace"))
    return found


def author_of(response: httpx2.Response, content: bytes) -> Literal["service", "proxy", "unknown"]:
    """Who made this error up, as far as that shows.

    nginx puts its name into `Server` whoever answered, Tailscale Serve puts it nowhere. What tells them apart is the
    body: JSON is a service's, a page that is signed a proxy's. Of 502 and 504, which only gateways answer (RFC 9110),
    a page or nothing is a proxy's; a service that asks others says more.
    """
    kind = response.headers.get("content-type", "")
    if _parsed(content) is not None or "json" in kind:
        return "service"
    if SIGNED.search(content[:MAX_PAGE]):
        return "proxy"
    if APPLICATION.search(response.headers.get("server", "")):
        return "service"
    nothing_said = kind.startswith("text/html") or not content.strip()
    return "proxy" if response.status_code in GATEWAY and nothing_said else "unknown"


def detail(content: bytes) -> str:
    """What an error says, in the shapes of tailspan, FastAPI and others; without line ends, and not all of it."""
    found = _parsed(content)
    error = found.get("error", found.get("detail", found.get("message"))) if isinstance(found, dict) else None
    if isinstance(error, dict):
        error = " ".join(str(error[key]) for key in ("message", "rule", "fix") if key in error) or error
    if isinstance(error, list):
        error = "; ".join(_mistake(one) for one in error)
    text = " ".join(str(error or content.decode(errors="replace")).split()) or "nothing more"
    return text[:300] + "…" if len(text) > 300 else text if text[-1] in ".?!" else f"{text}."


def _mistake(one: Any) -> str:
    """An entry of FastAPI's 422."""
    if isinstance(one, dict) and "loc" in one:
        return f"{'.'.join(map(str, one['loc']))}: {one.get('msg')}"
    return str(one)
