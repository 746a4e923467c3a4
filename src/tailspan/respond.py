"""Errors as responses: one JSON shape, and google.rpc.Status where OTLP asks for it."""

from collections.abc import Callable, Coroutine
from http import HTTPStatus
from typing import Any, Final

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from google.protobuf.json_format import MessageToJson
from google.protobuf.message import Message
from google.rpc.status_pb2 import Status  # type: ignore[import-untyped]
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.types import Scope

from tailspan.errors import QuestionError, TailspanError, shape
from tailspan.ingest.otlp import JSON, PROTOBUF

OTLP_PATH: Final = "/v1/traces"
ANALYTICS_OTLP_PATH: Final = "/analytics/v1/traces"  # within a host's own app
# HTTP status → google.rpc.Code
RPC_CODES: Final = {400: 3, 401: 16, 403: 7, 413: 8, 415: 3, 503: 14}


def refusal(error: TailspanError, scope: Scope) -> Response:
    """The response that tells of the error, in the shape its endpoint promises."""
    if scope["path"].endswith(OTLP_PATH) and scope["method"] == "POST":
        status = Status(code=RPC_CODES.get(error.status, 2), message=str(error))
        return otlp(status, Headers(scope=scope).get("content-type"), error.status, error.headers)
    return JSONResponse(error.body(), error.status, error.headers)


def otlp(
    message: Message, content_type: str | None, status: int = 200, headers: dict[str, str] | None = None
) -> Response:
    """An OTLP answer, in the content type of the request."""
    if media_type(content_type) == JSON:
        return Response(MessageToJson(message, indent=None), status, headers, JSON)
    return Response(message.SerializeToString(), status, headers, PROTOBUF)


def media_type(content_type: str | None) -> str:
    return (content_type or "").partition(";")[0].strip().lower()


def of_tailspan(request: Request, error: Any) -> Response:
    return refusal(error, request.scope)


def of_framework(request: Request, error: Any) -> Response:
    """404, 405: what the routing raises."""
    assert isinstance(error, HTTPException)
    code = HTTPStatus(error.status_code).phrase.lower().replace(" ", "_")
    message = f"{request.method} {request.url.path}: {error.detail}."
    return JSONResponse(shape(code, message, fix="GET /docs lists what there is."), error.status_code, error.headers)


def of_parameters(request: Request, error: Any) -> Response:
    """422: the first parameter that is wrong, as pydantic names it."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    name = ".".join(str(part) for part in first["loc"][1:]) or str(first["loc"][0])
    if first["type"] == "extra_forbidden":
        return refusal(QuestionError(f"{name!r} is no parameter of {request.url.path}.", value=name), request.scope)
    value = first.get("input")
    return refusal(QuestionError(f"{name} is {value!r}.", value=value, rule=f"{first['msg']}."), request.scope)


def of_surprise(request: Request, error: Exception) -> Response:
    """500: a mistake of ours. The log has the traceback, the caller only learns that there is one."""
    return refusal(TailspanError("tailspan made a mistake; its log says more."), request.scope)


class Answering(APIRoute):
    """A route that tells of our errors itself, so that it does so in any app."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def answer(request: Request) -> Response:
            try:
                return await handle(request)
            except TailspanError as error:
                return of_tailspan(request, error)
            except RequestValidationError as error:
                return of_parameters(request, error)

        return answer


HANDLERS: Final = {
    TailspanError: of_tailspan,
    HTTPException: of_framework,
    RequestValidationError: of_parameters,
    Exception: of_surprise,
}
