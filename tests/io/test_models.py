"""Pydantic models, dataclasses, named tuples and enums: the annotation brings them back."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from decimal import Decimal
from enum import Enum, Flag, IntEnum, StrEnum
from typing import Annotated, Any, Generic, NamedTuple, TypeVar

import pytest
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    RootModel,
    field_validator,
)
from pydantic.dataclasses import dataclass as pydantic_dataclass
from typing_extensions import TypedDict

from flowstone.errors import OutputError
from flowstone.io import Outputs
from flowstone.io.formats import decode, encode
from tests.io.places import place

T = TypeVar("T")


class Color(Enum):
    RED = "red"
    BOTH = ("red", 2)


class Level(StrEnum):
    HIGH = "high"


class Rank(IntEnum):
    FIRST = 1


class Allowed(Flag):
    READ = 1
    WRITE = 2


class Part(BaseModel):
    size: int
    made: date | None = None


class Whole(BaseModel):
    model_config = ConfigDict(extra="allow")

    name: str = Field(alias="theName")
    parts: list[Part] = []
    price: Decimal = Decimal("1.10")
    tags: set[str] = set()
    level: Level = Level.HIGH
    at: tuple[int, ...] = ()
    data: bytes = b""
    of: dict[int, Part] = {}


class Strict(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True)

    day: date
    pair: tuple[int, str]


class Boxed(BaseModel, Generic[T]):
    inner: T


class Numbers(RootModel[list[int]]):
    pass


@dataclass
class Point:
    x: float
    y: float = 0.0


@dataclass(frozen=True)
class Line:
    start: Point
    ends: tuple[Point, ...]
    color: Color
    length: float = field(init=False, default=1.5)


@dataclass
class Derived:
    n: int
    double: int = field(init=False)

    def __post_init__(self) -> None:
        self.double = 2 * self.n


@dataclass(slots=True, eq=False)
class Slotted:
    at: date


@pydantic_dataclass
class Checked:
    n: int
    at: date


class Pair(NamedTuple):
    left: int
    right: Point | None = None


Old = namedtuple("Old", ["a", "b"])  # noqa: PYI024 - as users have them


class Row(TypedDict):
    at: date
    of: Part


WHOLE = Whole(
    theName="a",
    parts=[Part(size=1, made=date(2013, 1, 1)), Part(size=2)],
    tags={"x", "y", "z"},
    at=(1, 2),
    data=b"\xff",
    of={1: Part(size=3)},
    more=[1.5],  # type: ignore[call-arg]
)

MODELS: list[tuple[Any, Any]] = [
    (WHOLE, Whole),
    (Part(size=1), Part),
    (Strict(day=date(2013, 1, 1), pair=(1, "a")), Strict),
    ({Strict(day=date(2013, 1, 1), pair=(1, "a"))}, set[Strict]),
    ({"a": frozenset({Strict(day=date(2013, 1, 1), pair=(1, "a"))})}, dict[str, frozenset[Strict]]),
    ({Color.RED, Color.BOTH}, set[Color]),
    (Boxed[Part](inner=Part(size=1)), Boxed[Part]),
    (Numbers([1, 2]), Numbers),
    ([Numbers([1]), Numbers([])], list[Numbers]),
    ([Part(size=1), Part(size=2)], list[Part]),
    ([], list[Part]),
    ({"a": Part(size=1)}, dict[str, Part]),
    ({date(2013, 1, 1): [Part(size=1)]}, Mapping[date, Sequence[Part]]),
    (Part(size=1), Part | None),
    (None, Part | None),
    ((Part(size=1), 2), tuple[Part, int]),
    (Part(size=1), Annotated[Part, "a note"]),
    ([Part(size=1), Point(1.0)], list[Part | Point]),
    (Point(1.0, 2.0), Point),
    (Line(Point(1.0), (Point(2.0), Point(3.0)), Color.RED), Line),
    (Derived(2), Derived),
    (Slotted(date(2013, 1, 1)), Slotted),
    (Checked(1, date(2013, 1, 1)), Checked),
    (Pair(1, Point(2.0)), Pair),
    ([Pair(1)], list[Pair]),
    (Old(1, "b"), Old),
    (Color.RED, Color),
    (Color.BOTH, Color),
    (Level.HIGH, Level),
    ([Rank.FIRST], list[Rank]),
    ({Level.HIGH: Rank.FIRST}, dict[Level, Rank]),
    (Allowed.READ | Allowed.WRITE, Allowed),
    ({"at": date(2013, 1, 1), "of": Part(size=1)}, Row),
]


def types_of(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return type(value), [types_of(getattr(value, name)) for name in type(value).model_fields]
    if hasattr(value, "__dataclass_fields__"):
        return type(value), [types_of(getattr(value, n)) for n in value.__dataclass_fields__]
    if isinstance(value, dict):
        return type(value), [(types_of(k), types_of(v)) for k, v in value.items()]
    if isinstance(value, list | tuple):
        return type(value), [types_of(part) for part in value]
    return type(value)


@pytest.mark.parametrize(("value", "kind"), MODELS, ids=range(len(MODELS)))
def test_a_model_comes_back_by_its_annotation(value: Any, kind: Any) -> None:
    encoded = encode(value, kind)
    back = decode(encoded.format, encoded.data, kind)
    assert types_of(back) == types_of(value)
    if not isinstance(value, Slotted):  # for which == is `is`
        assert back == value
    assert encode(back, kind).data == encoded.data


def test_every_manager_keeps_models(outputs: Outputs) -> None:
    stored = outputs.store([WHOLE], place(), as_type=list[Whole])
    assert outputs.load(stored, list[Whole]) == [WHOLE]


def test_without_the_class_a_model_is_a_dict() -> None:
    encoded = encode([Line(Point(1.0), (), Color.BOTH), WHOLE], list[Line | Whole])
    line, whole = decode(encoded.format, encoded.data)
    assert line == {"start": {"x": 1.0, "y": 0.0}, "ends": (), "color": ("red", 2)}
    assert (whole["name"], whole["price"], whole["more"]) == ("a", Decimal("1.10"), [1.5])
    # No name of a class is stored.
    assert b"Point" not in encoded.data


def test_a_reader_may_want_another_model() -> None:
    class Short(BaseModel):
        size: int

    encoded = encode([Part(size=1)], list[Part])
    assert decode(encoded.format, encoded.data, tuple[Short, ...]) == (Short(size=1),)
    assert decode(encoded.format, encoded.data, list[dict[str, Any]])[0]["size"] == 1


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (int, r"it cannot be read as <class 'int'>: Input should be a valid int"),
        (Point, r"it cannot be read as .*Point'>: x: Field required|y: |Unexpected"),
        (list["Nowhere"], r"it cannot be read as list\['Nowhere'\]: "),  # type: ignore[name-defined] # noqa: F821
        (memoryview, r"it cannot be read as <class 'memoryview'>: Unable to generate"),
    ],
)
def test_a_reader_that_wants_what_it_is_not_is_told(kind: Any, said: str) -> None:
    encoded = encode(Part(size=1), Part)
    with pytest.raises(OutputError, match=said) as caught:
        decode(encoded.format, encoded.data, kind)
    assert "\n" not in caught.value.message


class Base(BaseModel):
    size: int


class Child(Base):
    more: int = 0


class Secret(BaseModel):
    size: int
    _seen: int = PrivateAttr(default=0)

    def model_post_init(self, _: Any) -> None:
        self._seen = self.size


class Grows(BaseModel):
    size: int

    @field_validator("size")
    @classmethod
    def grow(cls, value: int) -> int:
        return value + 1


class Breaks(BaseModel):
    size: int

    @field_validator("size")
    @classmethod
    def fail(cls, value: int) -> int:
        if value == 7:
            raise RuntimeError("a fault of the user's")
        return value


class Opaque(BaseModel):
    model_config = ConfigDict(arbitrary_types_allowed=True)

    thing: object


@dataclass
class Lax:
    x: float


@dataclass
class Remembers:
    x: int
    y: int = field(init=False, default=0)


def remembering() -> Remembers:
    made = Remembers(1)
    made.y = 5
    return made


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (Part(size=1), None),
        (Part(size=1), dict[str, Any]),
        ([Part(size=1)], list[Any]),
        (Part(size=1), Point),
        (Color.RED, None),
        (Level.HIGH, None),
        (Level.HIGH, str),
        (Rank.FIRST, int),
        (Point(1.0), None),
        (Pair(1), tuple[int, Any]),
        (Child(size=1), Base),
        (Grows(size=1), Grows),
        (Breaks.model_construct(size=7), Breaks),
        (Opaque(thing=object()), Opaque),
        (Lax(1), Lax),
        (Lax(True), Lax),
        (Part.model_construct(size=1.0), Part),
        (Part.model_construct(size="1"), Part),
        (remembering(), Remembers),
        ({Pair(1): 1}, dict[Pair, int]),
        ({Strict(day=date(2013, 1, 1), pair=(1, "a"))}, None),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_would_come_back_as_something_else_is_refused(value: Any, kind: Any) -> None:
    with pytest.raises(OutputError, match="annotate the model, dataclass or enum"):
        encode(value, kind)


def test_private_attributes_count() -> None:
    assert encode(Secret(size=2), Secret)
    other = Secret(size=2)
    other._seen = 9
    with pytest.raises(OutputError):
        encode(other, Secret)
