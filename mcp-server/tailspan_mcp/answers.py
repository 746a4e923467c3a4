"""What a tool answers: a sentence for people, and data that is small enough to be read."""

import json
import re
from collections import Counter
from collections.abc import Iterator
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any, Final

from mcp_types import CallToolResult, TextContent

BUDGET: Final = 1_200  # tokens of the data, by `tokens`
MANY: Final = 4  # from so many objects on, a list is told by columns
TABLE: Final = 25  # so many entries no object has whose names are fields
MAX_TEXT: Final = 400

Place = tuple[str | int, ...]


def answer(text: str, content: dict[str, Any]) -> CallToolResult:
    """The sentence and the data, also as text: not every client shows structured content to its model."""
    shown = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    return CallToolResult(
        content=[TextContent(type="text", text=text), TextContent(type="text", text=shown)], structured_content=content
    )


def fit(content: dict[str, Any], budget: int = BUDGET) -> dict[str, Any]:
    """The content by columns; what is too much is left out from the ends of its lists, and `left_out` says how much."""
    kept, left = _bounded(content), Counter[str]()
    shown = columns(kept)
    while (over := tokens(shown)) > budget:
        place, longest = max(_lists(kept), key=lambda one: len(json.dumps(one[1])), default=((), []))
        if not longest:
            break  # nothing that could be shorter
        keep = max(1, min(len(longest) - 1, len(longest) * budget // over))
        left[".".join(map(str, place))] += len(longest) - keep
        for key in list(range(len(longest)) if isinstance(longest, list) else longest)[: keep - 1 : -1]:
            del longest[key]
        shown = {**columns(kept), "left_out": {name: f"{count} more" for name, count in left.items()}}
    return dict(shown)


def tokens(value: object) -> int:
    """How many tokens the JSON of a value is, rather too many: digits by threes, words by fours, signs by twos."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return len(re.findall(r"\d{1,3}|[^\W\d_]{1,4}|[^\w\s]{1,2}|_|\s+", text))


def columns(value: Any) -> Any:
    """Lists of objects with the same simple entries as one object of lists: each name is written once.

    A column whose values are all the same is that value; one of even steps is its first, its step, and the count.
    """
    if isinstance(value, dict):
        return {key: columns(inner) for key, inner in value.items()}
    if not isinstance(value, list):
        return value
    if len(value) < MANY or not all(isinstance(one, dict) and _simple(one) for one in value):
        return [columns(one) for one in value]
    names = list(dict.fromkeys(name for one in value for name in one))
    if not names or "rows" in names or sum(len(one) for one in value) * 2 < len(names) * len(value):
        return value
    return {"rows": len(value)} | {name: _column([one.get(name) for one in value]) for name in names}


def _column(values: list[Any]) -> Any:
    if all(value == values[0] for value in values):
        return {"all": values[0]}
    if step := _step(values):
        return {"from": values[0], "step": step}
    return values


def _step(values: list[Any]) -> str | int | None:
    if all(type(value) is int for value in values):
        steps = {later - earlier for earlier, later in pairwise(values)}
        return steps.pop() if len(steps) == 1 else None
    try:
        apart = {later - earlier for earlier, later in pairwise(map(datetime.fromisoformat, values))}
    except (TypeError, ValueError):
        return None
    only = apart.pop()
    return None if apart or only % timedelta(minutes=1) else f"{only // timedelta(minutes=1)} min"


def _simple(one: dict[str, Any]) -> bool:
    return not any(isinstance(value, dict | list) for value in one.values())


def _bounded(value: Any) -> Any:
    """A copy without what nobody could read."""
    if isinstance(value, dict):
        return {key: _bounded(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_bounded(inner) for inner in value]
    return value[:MAX_TEXT] + "…" if isinstance(value, str) and len(value) > MAX_TEXT else value


def _lists(value: Any, place: Place = ()) -> Iterator[tuple[Place, Any]]:
    """The outermost that can be shorter, and where they are: lists, and objects of very many entries."""
    if (isinstance(value, list) and len(value) > 1) or (isinstance(value, dict) and len(value) > TABLE):
        yield place, value
    elif isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _lists(inner, (*place, key))
