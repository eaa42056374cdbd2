"""What clients may ask for: bodies of requests to checked values."""

from __future__ import annotations

import json
import re
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fewstep.errors import FewstepError

LARGEST_BODY = 1 << 16
"""Bytes of a request."""
LARGEST_SIDE = 2048
"""Pixels."""


class Images(BaseModel):
    """`POST /v1/images/generations`: the common fields, and `seed`."""

    model_config = ConfigDict(extra="ignore", strict=True)  # clients of this shape send fields of other services too

    prompt: str = Field(max_length=4000)
    model: str = ""
    n: int = Field(default=1, ge=1, le=8)
    seed: int = Field(default=0, ge=0, lt=1 << 63)
    size: str = ""
    response_format: str = "b64_json"

    def pixels(self) -> tuple[int, int] | None:
        """Width and height; None for the pipeline's own.

        Raises:
            FewstepError: no size.
        """
        if not self.size:
            return None
        found = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", self.size)
        if not found or max(map(int, found.groups())) > LARGEST_SIDE:
            hint = f'Give "512x512"; at most {LARGEST_SIDE} pixels a side.'
            raise FewstepError("size is width x height in pixels", value=self.size, hint=hint)
        return int(found[1]), int(found[2])


class Comparison(BaseModel):
    """`POST /compare`: one prompt and seed by all columns."""

    model_config = ConfigDict(extra="forbid", strict=True)

    prompt: str = Field(max_length=4000)
    seed: int = Field(default=0, ge=0, lt=1 << 63)
    previews: bool = False


class Vote(BaseModel):
    """`POST /votes`: of a comparison that was shown, the column that was liked most."""

    model_config = ConfigDict(extra="forbid", strict=True)

    comparison: str
    chosen: str


class FrontPoint(BaseModel):
    """`POST /front`: the point of the front that becomes a column."""

    model_config = ConfigDict(extra="forbid", strict=True)

    point: int


def parse_request(kind: type[BaseModel], body: bytes) -> Any:
    """The request that a body holds.

    Raises:
        FewstepError: no JSON, or a field that is missing, unknown, of another type or out of range.
    """
    try:
        found = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise FewstepError("the body is no JSON", hint='Send {"prompt": "cat face"}.') from error
    try:
        return kind.model_validate(found)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "the body"
        hint = "" if first["type"] == "missing" else f"Fields: {', '.join(kind.model_fields)}."
        value = None if first["type"] == "missing" else first["input"]
        raise FewstepError(f"{field}: {first['msg'].lower()}", value=value, hint=hint) from error
