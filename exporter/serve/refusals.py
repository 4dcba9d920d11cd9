"""Why a request is not answered: a status, a code for programs and a plain sentence for people."""

from __future__ import annotations

from exporter.graph.guards import GUARDS

STATUSES: dict[str, int] = {
    "bad_json": 400,
    "not_found": 404,
    "method_not_allowed": 405,
    "too_slow": 408,
    "too_large": 413,
    "invalid": 422,
    "too_many_prompts": 422,
    "unreadable_prompt": 422,
    "empty_prompt": 422,
    "wrong_length": 422,
    "unknown_token": 422,
    "internal_error": 500,
    "queue_full": 503,
    "not_ready": 503,
    "timeout": 504,
}
"""By code: the HTTP status."""


class RequestError(Exception):
    """A request that is refused. `code` is one of STATUSES, or a guard's (`name_refusal`), which is 422."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code, self.message = code, message

    @property
    def status(self) -> int:
        """The HTTP status."""
        return STATUSES.get(self.code, 422)

    @property
    def is_out_of_reach(self) -> bool:
        """Whether the prompt is one that this model was not made for, and another might answer."""
        return self.code in _OUT_OF_REACH

    def to_json(self) -> dict[str, dict[str, str]]:
        """The body of the response."""
        return {"error": {"code": self.code, "message": self.message}}


def name_refusal(guard: str) -> str:
    """The code of a guard that is false: `out_of_vocabulary` for `in_vocabulary`."""
    return f"out_of_{guard.removeprefix('in_')}"


_OUT_OF_REACH = {"wrong_length", *map(name_refusal, GUARDS)}
