"""One-line JSON errors: answers of the application, and bytes for a connection that it cannot answer."""

from http import HTTPStatus

from starlette.responses import JSONResponse

from runtime.server.errors import RequestRejected

SECURITY_HEADERS = (
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
        b"form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"permissions-policy", b"camera=(), microphone=(), geolocation=()"),
)
CLOSING_STATUSES = (408, 413, 429, 503)  # the rest of the request's body is not read


def error_response(rejection: RequestRejected) -> JSONResponse:
    headers = {}
    if rejection.status in CLOSING_STATUSES:
        headers["Connection"] = "close"
    if rejection.retry_after is not None:
        headers["Retry-After"] = str(rejection.retry_after)
    if rejection.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse({"source": rejection.source, "error": rejection.reason}, rejection.status, headers)


def closing_answer(rejection: RequestRejected) -> bytes:
    """A complete HTTP/1.1 answer, after which the connection is closed."""
    response = error_response(rejection)
    response.headers["Connection"] = "close"
    fields = (b"%s: %s\r\n" % field for field in (*response.raw_headers, *SECURITY_HEADERS))
    status = f"HTTP/1.1 {rejection.status} {HTTPStatus(rejection.status).phrase}\r\n"
    return status.encode() + b"".join(fields) + b"\r\n" + bytes(response.body)
