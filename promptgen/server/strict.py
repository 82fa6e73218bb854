"""A JSON object becomes a model's instance, or a 400 whose `param` names the field at fault. The input is never sent back."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from promptgen.server.faults import HttpFault

STRICT = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)
ModelName = Annotated[str | None, Field(max_length=256, description="which model; GET /models lists them")]
_MAX_NAME = 64
Body = TypeVar("Body", bound=BaseModel)


def validate(model: type[Body], fields: dict[str, Any]) -> Body:
    """Raises HttpFault 400: an unknown field first, else the first fault in the order of the model."""
    try:
        return model.model_validate(fields)
    except ValidationError as fault:
        errors = fault.errors(include_input=False, include_url=False, include_context=False)
    unknown = next((str(error["loc"][0]) for error in errors if error["type"] == "extra_forbidden"), None)
    if unknown is not None:
        name, known = _safe_name(unknown), ", ".join(model.model_fields)
        raise HttpFault(400, "unknown_field", f"{name} is not a field; known are {known}", param=name)
    first = _telling(errors, fields)
    param = str(first["loc"][0])
    code = "missing_field" if first["type"] == "missing" else "invalid_value"
    raise HttpFault(400, code, f"{_place(first['loc'])}: {first['msg']}", param=param)


def _telling(errors: list[Any], fields: dict[str, Any]) -> Any:
    """The first fault. Where a list was sent to a field that takes one or a text, what is wrong with the list tells more."""
    name = errors[0]["loc"][0]
    if isinstance(fields.get(name), list):
        of_list = [
            error for error in errors if error["loc"][0] == name and str(error["loc"][1:2]).startswith("('list[")
        ]
        return {**of_list[0], "loc": (name, *of_list[0]["loc"][2:])} if of_list else errors[0]
    return errors[0]


def _place(location: tuple[int | str, ...]) -> str:
    """`ids` or `ids[3]`."""
    index = location[1] if len(location) > 1 and isinstance(location[1], int) else None
    return str(location[0]) if index is None else f"{location[0]}[{index}]"


def _safe_name(name: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in name[:_MAX_NAME])
