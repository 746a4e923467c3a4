"""Everything that can go wrong here, and the one shape it is told in.

    TailspanError            500
    ├── SettingError         a setting has a bad value; ends the command
    ├── SetupError           InfluxDB cannot be set up; ends the command
    ├── QuestionError        422  a parameter of a question
    ├── AccessError          401  no token where one is needed
    │   ├── ReaderError      403  somebody who may not read here
    │   ├── HostError        400  a Host this server does not answer to
    │   └── OriginError      403  a browser page of another origin
    ├── DeliveryError        400  a delivery of spans that cannot be read
    │   ├── TypeOfDeliveryError  415
    │   ├── SizeOfDeliveryError  413
    │   └── RateError            429  too many at once from one caller
    ├── NotInstalledError  501  a part that is not installed
    ├── UnsentError               what is exported, and nobody takes
    ├── MissingError         404  there is no such device
    ├── TailnetError         503  a list of the tailnet's devices cannot be had
    ├── LogError                  a log that cannot be read
    │   ├── CutError             a packed one whose end is missing or broken
    │   └── OtherServiceError    one that was read as another service's
    └── StoreError           503  the store cannot answer
        ├── LockedError      another process holds the file
        ├── ServerError      InfluxDB is away
        ├── SlowError        InfluxDB took longer than a question may
        ├── TokenError       InfluxDB refuses the token
        ├── BucketError      InfluxDB has no such bucket
        └── BusyError        503  the store cannot take spans now; come again

Each message is a sentence that names the value; `rule` says what is allowed, `fix` what to do. As JSON:
`{"error": {"code", "message", "value", "rule", "fix"}}`, where value, rule and fix are left out when there is none.
"""

from typing import ClassVar, Literal


class TailspanError(Exception):
    """The root: catch this at an edge."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "error"
    headers: ClassVar[dict[str, str]] = {}

    def __init__(self, message: str, *, value: object = None, rule: str | None = None, fix: str | None = None) -> None:
        super().__init__(message)
        self.message, self.value, self.rule, self.fix = message, value, rule, fix

    def __str__(self) -> str:
        return " ".join(sentence for sentence in (self.message, self.rule, self.fix) if sentence)

    def body(self) -> dict[str, dict[str, object]]:
        return shape(self.code, self.message, self.value, self.rule, self.fix)


def shape(
    code: str, message: str, value: object = None, rule: str | None = None, fix: str | None = None
) -> dict[str, dict[str, object]]:
    """The JSON of any error, also of those that the framework raises."""
    entries = {"code": code, "message": message, "value": value, "rule": rule, "fix": fix}
    return {"error": {key: entry for key, entry in entries.items() if entry is not None}}


class SettingError(TailspanError):
    code = "bad_setting"


class SetupError(TailspanError):
    code = "not_set_up"


class QuestionError(TailspanError):
    status = 422
    code = "bad_parameter"


class AccessError(TailspanError):
    status = 401
    code = "token_needed"
    headers: ClassVar = {"WWW-Authenticate": "Bearer"}


class ReaderError(AccessError):
    status = 403
    code = "not_a_reader"
    headers: ClassVar = {}


class HostError(AccessError):
    status = 400
    code = "unknown_host"
    headers: ClassVar = {}


class OriginError(AccessError):
    status = 403
    code = "foreign_origin"
    headers: ClassVar = {}


class DeliveryError(TailspanError):
    status = 400
    code = "unreadable_body"


class TypeOfDeliveryError(DeliveryError):
    status = 415
    code = "unsupported_type"


class SizeOfDeliveryError(DeliveryError):
    status = 413
    code = "body_too_large"


class NotInstalledError(TailspanError):
    status = 501
    code = "not_installed"


class RateError(DeliveryError):
    status = 429
    code = "too_many"
    headers: ClassVar = {"Retry-After": "60"}


class UnsentError(TailspanError):
    code = "unsent"


class LogError(TailspanError):
    code = "log_unreadable"


class FormatError(LogError):
    code = "log_format_unknown"


class CutError(LogError):
    code = "log_cut_off"


class OtherServiceError(LogError):
    code = "log_of_another_service"


class MissingError(TailspanError):
    status = 404
    code = "unknown_device"


TailnetState = Literal[
    "unreachable", "slow", "unreadable", "old", "wrong token", "not allowed", "asked too often", "logged out"
]


class TailnetError(TailspanError):
    """`state` is the source's while it is so; `again_s` how long it wishes to be left alone."""

    status = 503
    code = "tailnet_unreadable"

    def __init__(
        self, state: TailnetState, message: str, *, fix: str | None = None, again_s: float | None = None
    ) -> None:
        super().__init__(message, fix=fix)
        self.state, self.again_s = state, again_s


Trouble = Literal["unreadable", "unreachable", "slow", "wrong token", "bucket missing"]


class StoreError(TailspanError):
    status = 503
    code = "store_unreadable"
    state: ClassVar[Trouble] = "unreadable"  # of the store, while it is so


class LockedError(StoreError):
    code = "store_locked"


class ServerError(StoreError):
    state = "unreachable"
    code = "store_unreachable"


class SlowError(StoreError):
    state = "slow"
    code = "store_slow"


class TokenError(StoreError):
    state = "wrong token"
    code = "store_refuses_token"


class BucketError(StoreError):
    state = "bucket missing"
    code = "store_bucket_missing"


class BusyError(StoreError):
    code = "store_busy"
    headers: ClassVar = {"Retry-After": "2"}
