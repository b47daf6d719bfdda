"""Chat templates: what transformers renders, and what a hostile one may not do."""

from __future__ import annotations

import datetime
import time

import pytest
from by_path import load

from gapo_jax.data.chat import rendering_key, set_template_variables
from gapo_jax.data.chat_template import literal_text, render, template_of
from gapo_jax.data.lint import lint
from gapo_jax.data.tiny_tokenizer import character_tokenizer
from gapo_jax.data.tokenizer import chat_prompt

families = load("tests/data/families.py")
TURNS = [
    {"role": "user", "content": "a \n"}, {"role": "assistant", "content": " b"},
    {"role": "user", "content": "<c> & 'd'"}, {"role": "assistant", "content": "<think>e</think>f"},
]  # fmt: skip
FEATURES = """
{%- set ns = namespace(n=0) -%}
{%- macro shown(text) %}[{{ text | trim }}]{% endmacro -%}
{%- for message in messages %}
    {%- if loop.last %}{% break %}{% endif %}
    {%- set ns.n = ns.n + 1 %}
    {% generation %}{{ shown(message.content) }}{% endgeneration %}
    {{ loop.index0 }}/{{ loop.length }}{{ loop.previtem.role if loop.previtem is defined }}
{%- endfor %}
{{ messages | map(attribute='role') | list | join('-') | upper }}{{ messages[0] | tojson }}
{{ '%s+%03d' | format('a', 7) }}{{ '{}'.format(2) }}{{ ns.n * 3 }}{{ 'ab' * 2 ~ 'c' }}{{ 2 ** 3 }}
{% filter upper %}x{{ bos_token }}{% endfilter %}{% set y | upper %}y{% endset %}{{ y }}
{{ strftime_now('%Y') }}{{ tools is none }}{{ range(3) | sum }}{{ messages[1:] | length }}
"""


@pytest.mark.parametrize(
    "template", [families.CHATML, families.QWEN3, families.GEMMA, families.ZEPHYR, FEATURES]
)
def test_it_renders_what_transformers_renders(template):
    tokenizer = character_tokenizer()
    tokenizer.chat_template = template
    names = {name: getattr(tokenizer, name) for name in ("bos_token", "eos_token")}
    names["date"] = datetime.date.today().isoformat()  # which transformers takes
    for turns in (TURNS, TURNS[:1], TURNS[:3]):
        for generate in (False, True):
            own = tokenizer.apply_chat_template(
                turns, tokenize=False, add_generation_prompt=generate
            )
            assert render(template, turns, generate=generate, **names) == own


def test_variables_and_the_date_are_those_of_the_tokenizer():
    """Nothing depends on the day: without a date a template that asks for it gets a fixed one."""
    tokenizer = character_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}<s>{{ m.content }}{% endfor %}{{ strftime_now('%d.%m.%Y') }}"
        "{{ date_string | default('') }}{% if not enable_thinking | default(true) %}calm{% endif %}"
    )
    assert str(chat_prompt(tokenizer, "Hi")) == "<s>Hi26.07.2024"
    key = rendering_key(tokenizer)
    set_template_variables(tokenizer, {"date": "2026-12-01", "enable_thinking": False})
    assert str(chat_prompt(tokenizer, "Hi")) == "<s>Hi01.12.202601 Dec 2026calm"
    assert rendering_key(tokenizer) != key
    set_template_variables(tokenizer, {})
    assert rendering_key(tokenizer) == key


_SET = "{% set ns = namespace(x='ab', n=3) %}{% for i in range(60) %}"
HOSTILE = {
    "nested loops that write": "{% for i in range(99999) %}{% for j in range(99999) %}x{% endfor %}"
    "{% endfor %}",
    "nested loops": "{% for i in range(9999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "loops over a text": "{% for a in 'abcdefghij' %}" * 12 + "{% endfor %}" * 12,
    "recursive loops": "{% for a in range(9999) recursive %}{{ loop(range(9999)) }}{% endfor %}",
    "recursive macros": "{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}",
    "doubling by ~": _SET + "{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "doubling by +": _SET + "{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "doubling a block": _SET + "{% set ns.x %}{{ ns.x }}{{ ns.x }}{% endset %}{% endfor %}",
    "doubling a list": _SET + "{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x }}",
    "doubling by replace": _SET + "{% set ns.x = ns.x.replace('a', 'aa') %}{% endfor %}",
    "squaring": _SET + "{% set ns.n = ns.n * ns.n %}{% endfor %}",
    "a long text": "{{ 'x' * 10 ** 10 }}",
    "a wide text": "{{ 'x'.ljust(10 ** 10) }}",
    "a wide filter": "{{ 'x' | center(10000000000) }}",
    "a wide format": "{{ '%9999999999d' % 1 }}",
    "a wide str.format": "{{ '{:9999999999}'.format(1) }}",
    "a large power": "{{ 9 ** 99999999 }}",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_template_has_limits(name):
    start = time.process_time()
    with pytest.raises(ValueError, match="the chat template refuses turns of the roles") as caught:
        render(HOSTILE[name], TURNS[:1])
    assert "\n" not in str(caught.value)
    assert time.process_time() - start < 5


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ 1 / 0 }}", "division by zero"),
        ("{{ messages[7].content }}", "no element 7"),
        ("{{ messages | nothing }}", "No filter named"),
        ("{% if %}", "Expected an expression"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ raise_exception('not so') }}", "not so"),
    ],
)
def test_a_template_that_fails_is_one_line(template, reason):
    tokenizer = character_tokenizer()
    tokenizer.chat_template = template
    with pytest.raises(ValueError, match=reason) as caught:
        chat_prompt(tokenizer, "x")
    assert "\n" not in str(caught.value) and "chat template" in str(caught.value)
    report = lint([(1, {"prompt": "a", "completion": "b"})], tokenizer=tokenizer)
    assert report.malformed == 1 and reason in report.problems[0]


def test_the_default_of_several_templates_is_taken():
    tokenizer = character_tokenizer()
    tokenizer.chat_template = {"default": "d", "tool_use": "t"}
    assert template_of(tokenizer) == "d" and chat_prompt(tokenizer, "x") == "d"
    tokenizer.chat_template = {"tool_use": "t"}
    with pytest.raises(ValueError, match="wanted one named 'default'"):
        chat_prompt(tokenizer, "x")


def test_the_texts_of_a_template_tell_its_control_tokens():
    assert "<|im_start|>" in literal_text(families.CHATML)
    assert literal_text("{% if %}") == ""
