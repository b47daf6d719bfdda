"""Render chat templates, which are programs written by strangers, within limits.

Templates are Jinja as `transformers` runs them, with the same sandbox, filters and globals. In
addition, each rendering has a budget of steps and seconds, and each value a greatest size: nested
loops and texts that double themselves end with an error instead of filling the memory.
"""

from __future__ import annotations

import contextvars
import datetime
import functools
import json
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jinja2
import jinja2.ext
from jinja2 import nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from gapo_jax.records import JsonObject

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Turn = Mapping[str, str]  # "role" and "content"
_STEPS = 200_000  # iterations and calls of one rendering
_SECONDS = 10.0
_SIZE = 10_000_000  # characters of one value, and of the whole
_ITEM = 100  # characters that an item of a container counts for
# What a template that asks for today gets: the day that Llama 3's template names by itself. A
# prompt must not depend on the day on which a run happens to start or to continue.
_TODAY = datetime.date(2024, 7, 26)
_WIDTH = re.compile(r"[0-9]{6}")  # a width in a format string that takes all memory


class _Budget:
    """What is left of the steps and the time of one rendering."""

    def __init__(self) -> None:
        self.steps, self.end = _STEPS, time.monotonic() + _SECONDS

    def spend(self, steps: int) -> None:
        self.steps -= steps
        if self.steps < 0 or time.monotonic() > self.end:
            raise jinja2.TemplateError(f"it takes more than {_STEPS} steps or {_SECONDS:.0f} s")


_budget: contextvars.ContextVar[_Budget] = contextvars.ContextVar("_budget")


def _sized(value: Any) -> Any:
    """Return a value, or raise TemplateError if its text would be too long.

    A container counts each item as often as it holds it, since that is how often it would be
    written.
    """
    size, waiting = 0, [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, str | bytes):
            size += len(item)
        elif isinstance(item, int) and item.bit_length() > 64:
            raise jinja2.TemplateError("it computes with an integer of more than 64 bits")
        elif isinstance(item, Mapping):
            waiting += [*item.keys(), *item.values()]
            size += _ITEM * len(item)
        elif isinstance(item, list | tuple | set | frozenset):
            waiting += item
            size += _ITEM * len(item)
        if size > _SIZE:
            raise jinja2.TemplateError(f"it makes a value of more than {_SIZE} characters")
    return value


def _counted(items: Iterable[Any]) -> list[Any]:
    """Return the items of a loop after charging them to the budget."""
    listed = list(items)
    _budget.get().spend(len(listed) + 1)
    return listed


class _Limits(NodeTransformer):
    """Puts `_counted` around each loop's items and `_sized` around values that may have grown."""

    def _wrap(self, node: nodes.Expr, name: str) -> nodes.Expr:
        return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        node.iter = self._wrap(node.iter, "counted")  # pyright: ignore
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        node.nodes = [self._wrap(part, "sized") for part in node.nodes]
        return self._wrap(node, "sized")

    def visit_Output(self, node: nodes.Output) -> nodes.Node:
        self.generic_visit(node)
        node.nodes = [
            part if isinstance(part, nodes.TemplateData) else self._wrap(part, "sized")
            for part in node.nodes
        ]
        return node


class _Generation(jinja2.ext.Extension):
    """Accepts the `generation` blocks that some templates put around answers."""

    tags = {"generation"}

    def parse(self, parser: Any) -> Any:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Environment(ImmutableSandboxedEnvironment):
    """The sandbox of `transformers`, with every call and every growing operation limited."""

    intercepted_binops = frozenset(["+", "*", "**", "%"])

    def call(self, context: Any, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Call a function, having paid for it and for the items that it gets."""
        _check_arguments(getattr(obj, "__self__", None), *args, *kwargs.values())
        return _sized(super().call(context, obj, *args, **kwargs))

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """Return `str.format` of a text as the sandbox has it, its arguments checked first."""
        formatted = super().wrap_str_format(value)
        if formatted is None:
            return None

        def call(*args: Any, **kwargs: Any) -> str:
            _check_arguments(value.__self__, *args, *kwargs.values())
            return formatted(*args, **kwargs)

        return call

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Apply an operator to values that cannot make too large a one."""
        for value in (left, right):
            _sized(value)
        if operator == "**":
            _refuse_number(right)
        if operator == "*" and isinstance(left, Sequence) != isinstance(right, Sequence):
            items, times = (left, right) if isinstance(left, Sequence) else (right, left)
            _refuse_number(times)
            if len(_sized(items)) * times > _SIZE:
                raise jinja2.TemplateError(f"it makes a value of more than {_SIZE} characters")
        if operator == "%" and isinstance(left, str):
            _check_arguments(left, *(right if isinstance(right, tuple) else (right,)))
        return _sized(super().call_binop(context, operator, left, right))


def _refuse_number(value: Any) -> None:
    """Refuse a number that would fill the memory as a width, a count or an exponent."""
    if isinstance(value, int | float) and abs(value) > _STEPS:
        raise jinja2.TemplateError(f"it computes with a number of {value:.0e}")


def _check_arguments(text: Any, *arguments: Any) -> None:
    """Charge a call and its arguments to the budget, and refuse those that make a huge result."""
    items = (len(a) for a in arguments if isinstance(a, list | tuple | range | Mapping))
    _budget.get().spend(1 + sum(items))
    for argument in arguments:
        _refuse_number(_sized(argument))
    if not isinstance(text, str):
        return
    if _WIDTH.search(text) and ("%" in text or "{" in text):
        raise jinja2.TemplateError("it formats with a width of six digits or more")
    longest = max((len(a) for a in arguments if isinstance(a, Sequence)), default=0)
    if len(text) * longest > 10 * _SIZE:  # as by replacing every letter by a long text
        raise jinja2.TemplateError(f"it makes a value of more than {_SIZE} characters")


def _limited(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a filter whose inputs and result are checked."""

    @functools.wraps(function)  # also copies the mark that says what it wants first
    def call(*arguments: Any, **options: Any) -> Any:
        given = arguments[1:] if hasattr(function, "jinja_pass_arg") else arguments
        _check_arguments(given[0], *given[1:], *options.values())
        _sized(given[0])
        return _sized(function(*arguments, **options))

    return call


def _to_json(value: Any, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=False, **options)


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


@functools.cache
def _environment() -> _Environment:
    environment = _Environment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[_Generation, jinja2.ext.loopcontrols],
        optimized=False,  # it would compute constant parts while compiling, without any limit
    )
    filters = environment.filters | {"tojson": _to_json}
    environment.filters = {name: _limited(function) for name, function in filters.items()}
    environment.filters |= {"counted": _counted, "sized": _sized}
    environment.globals["raise_exception"] = _raise
    return environment


@functools.lru_cache(maxsize=32)
def _compiled(template: str) -> jinja2.Template:
    environment = _environment()
    tree = _Limits().visit(environment.parse(template))
    return jinja2.Template.from_code(
        environment, environment.compile(tree), environment.make_globals(None), None
    )


@functools.lru_cache(maxsize=32)
def literal_text(template: str) -> str:
    """Return the strings that a template writes itself, apart from its inputs.

    Returns "" for a broken template, which `render` will refuse with its reason.
    """
    try:
        tree = _environment().parse(template)
    except (jinja2.TemplateError, RecursionError):
        return ""
    texts = [node.data for node in tree.find_all(nodes.TemplateData)]
    texts += [node.value for node in tree.find_all(nodes.Const) if isinstance(node.value, str)]
    return "\0".join(texts)


def template_of(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Return the chat template of a tokenizer, the default one if it has several, or None."""
    template: Any = tokenizer.chat_template
    if isinstance(template, Mapping):
        if "default" not in template:
            raise ValueError(
                f"the tokenizer has the chat templates {sorted(template)}: wanted one named "
                "'default'; set tokenizer.chat_template to the one to use"
            )
        return template["default"]
    return template


def render(
    template: str,
    turns: Sequence[Turn],
    *,
    generate: bool = False,
    date: str | None = None,
    **variables: Any,
) -> str:
    """Render turns in a chat template.

    Args:
        template: the program, in Jinja.
        turns: "role" and "content" of each.
        generate: end with the header of the answer that the model is to write.
        date: today, as YYYY-MM-DD, for a template that asks; by default always the same day.
        variables: the special tokens under the names that templates use (`bos_token`, ...), and
            whatever else a template reads (`enable_thinking`, ...).

    Raises:
        ValueError: the template fails, exceeds a limit or refuses the turns, as some refuse a
            system turn or two user turns in a row; has the reason.
    """
    today = datetime.date.fromisoformat(date) if date else _TODAY
    known: JsonObject = {"strftime_now": today.strftime} | variables
    if date:
        known.setdefault("date_string", today.strftime("%d %b %Y"))
    known |= {
        "messages": [dict(turn) for turn in turns],
        "add_generation_prompt": generate,
        "tools": None,
        "documents": None,
    }
    token = _budget.set(_Budget())
    parts, size = [], 0
    try:
        for part in _compiled(template).generate(known):
            parts.append(part)
            size += len(part)
            if size > _SIZE:
                raise jinja2.TemplateError(f"it writes more than {_SIZE} characters")
    except Exception as error:  # a program of strangers may raise anything
        roles = [turn["role"] for turn in turns]
        raise ValueError(
            f"the chat template refuses turns of the roles {roles}: "
            f"{str(error) or type(error).__name__}; leave out or join turns that the model does "
            "not know, or set another chat_template"
        ) from error
    finally:
        _budget.reset(token)
    return "".join(parts)
