"""Config sections whose models are registered, so that what is added brings its own keys.

``Chosen``: one of several models, by the section's key ``name``. ``Composed``: one section of each registered
model, by its name. Both read their registry when a config is validated, not when they are defined.
"""

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from pydantic import BaseModel, GetCoreSchemaHandler, ValidationError, create_model
from pydantic_core import CoreSchema, InitErrorDetails, PydanticCustomError, core_schema

from configs.section import Section

Models = Mapping[str, type[Section]]


class _Registered:
    """An annotation of a field: how its value becomes a section."""

    def validate(self, value: Any) -> Section:
        raise NotImplementedError

    def fields(self) -> dict[str, Any]:
        """The fields that any of the models has, for those who look for what a wrong key may mean."""
        raise NotImplementedError

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        dump = core_schema.plain_serializer_function_ser_schema(
            lambda section, info: section.model_dump(mode=info.mode), info_arg=True
        )
        return core_schema.no_info_plain_validator_function(self.validate, serialization=dump)


class Chosen(_Registered):
    """``models()``: name -> model. The section's key ``name`` chooses; without it ``default`` is taken."""

    def __init__(self, models: Callable[[], Models], *, default: str) -> None:
        self._models, self._default = models, default

    def validate(self, value: Any) -> Section:
        models = self._models()
        if isinstance(value, Section):
            return value
        name = value.get("name", self._default) if isinstance(value, dict) else self._default
        if not isinstance(name, str) or name not in models:
            raise _fault(("name",), name, f"must be one of {', '.join(sorted(models))}")
        return models[name].model_validate(value)

    def fields(self) -> dict[str, Any]:
        return {key: field for model in self._models().values() for key, field in model.model_fields.items()}


class Composed(_Registered):
    """``models()``: name -> model of the section under that key, which may be left out; ``base`` has what the
    whole section can do."""

    def __init__(self, models: Callable[[], Models], *, base: type[Section]) -> None:
        self._models, self._base = models, base

    def validate(self, value: Any) -> Section:
        return value if isinstance(value, self._base) else self._model().model_validate(value)

    def fields(self) -> dict[str, Any]:
        return dict(self._model().model_fields)

    def _model(self) -> type[Section]:
        return _composed(self._base, tuple(self._models().items()))


@cache
def _composed(base: type[Section], models: tuple[tuple[str, type[Section]], ...]) -> type[Section]:
    fields: dict[str, Any] = {name: (model, model()) for name, model in models}
    return create_model(base.__name__, __base__=base, **fields)


def fields_of(field: Any) -> dict[str, Any]:
    """The fields of the section that stands in a pydantic ``field``; empty where it is no section."""
    for part in field.metadata:
        if isinstance(part, _Registered):
            return part.fields()
    kinds = [field.annotation, *getattr(field.annotation, "__args__", ())]
    found = next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)
    return dict(found.model_fields) if found else {}


def _fault(location: tuple[str, ...], value: Any, message: str) -> ValidationError:
    error = PydanticCustomError("value_error", message)
    details = InitErrorDetails(type=error, loc=location, input=value)
    return ValidationError.from_exception_data("section", [details])
