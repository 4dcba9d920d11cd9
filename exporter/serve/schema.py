"""What clients send and get, as types: FastAPI checks requests with them, and the OpenAPI page shows them."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StrictInt, StrictStr, model_validator
from pydantic.config import JsonDict

MOST_ANSWERS = 100

Texts = StrictStr | list[StrictStr]
Tokens = list[StrictInt] | list[list[StrictInt]]

EXPECTED = {
    "": "send an object with one of prompt, text and token_ids, as content-type application/json",
    "prompt": "give a text or a list of texts",
    "text": "give a text or a list of texts",
    "token_ids": "give a list of whole numbers, or a list of such lists",
    "top": f"give a whole number from 1 to {MOST_ANSWERS}",
}
"""What each field takes, for a request in which it is something else; "" is the body itself."""

_EXAMPLE: JsonDict = {"prompt": ["The Chief Executive Officer (CE"], "top": 3}


class PredictRequest(BaseModel):
    """One prompt or several, given in exactly one of three ways."""

    model_config = ConfigDict(extra="forbid", frozen=True, json_schema_extra={"examples": [_EXAMPLE]})

    prompt: Texts | None = Field(None, description="Whole prompts, as the task has them.")
    text: Texts | None = Field(None, description="A user's own text; the task's template is put around it.")
    token_ids: Tokens | None = Field(None, description="Prompts as token ids of the dense model.")
    top: StrictInt = Field(5, ge=1, le=MOST_ANSWERS, description="How many of the likeliest answers to return.")

    @model_validator(mode="after")
    def _require_one(self) -> Self:
        if sum(value is not None for value in (self.prompt, self.text, self.token_ids)) != 1:
            raise ValueError("give exactly one of prompt, text and token_ids")
        return self

    def list_texts(self) -> list[str]:
        """The prompts or texts; empty where token ids were given."""
        given = self.prompt if self.text is None else self.text
        return [given] if isinstance(given, str) else list(given or ())

    def list_tokens(self) -> list[tuple[int, ...]]:
        """The token ids by prompt."""
        given: list[Any] = self.token_ids or []
        one = self.token_ids is not None and not any(isinstance(part, list) for part in given)
        return [tuple(given)] if one else [tuple(part) for part in given]


class Choice(BaseModel):
    """One possible answer: a token's text, a class by its label. Probabilities are among all answers of the model."""

    answer: str
    label: str | None
    token_id: int | None
    probability: float


class Prediction(Choice):
    """The likeliest answer to one prompt, and others beside it."""

    choices: list[Choice]
    tokens: int = Field(description="Tokens of the prompt.")
    source: Literal["circuit", "dense"] = Field(description="`dense` where the fallback answered.")


class PredictResponse(BaseModel):
    """A prediction for each prompt, in their order."""

    model: str
    predictions: list[Prediction]


class Explanation(BaseModel):
    """Why there is no answer. `prompt` is which of the request's prompts is at fault, counted from 0."""

    code: str
    message: str
    prompt: int | None = None


class ErrorResponse(BaseModel):
    """The body of every response that is not 200."""

    error: Explanation
