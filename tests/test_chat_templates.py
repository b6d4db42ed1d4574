"""Chat templates: what they render, what they may not do, and that none of them hangs or eats memory."""

import json
import re
import subprocess
import sys
import threading

import jinja2
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2.sandbox import ImmutableSandboxedEnvironment

from phyla.errors import ArgumentError, TemplateError, TokenizerInputError
from phyla.preprocessing.text.chat import Rendered, get_json_schema, render

USER = {"role": "user", "content": " Hello, <b>é</b>! "}
ASSISTANT = {"role": "assistant", "content": "Fine, thanks.\n"}
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% "
    "endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Templates that together use what public ones use.
TEMPLATES = [
    CHATML,
    "{{ bos_token }}{% for m in messages %}\n    {%- if loop.first %}\n{{ m.role|upper }}\n    {%- else -%}"
    "\n  {{ loop.index0 }}"
    "{%- endif %}\n{% endfor %}\n\nend",
    "{% set ns = namespace(n=0, found=false) %}{% for m in messages %}{% if m.role == 'system' %}{% "
    "continue %}{% endif %}"
    "{% set ns.n = ns.n + 1 %}{% if ns.n > 2 %}{% break %}{% endif %}{{ ns.n }}{{ m['content'][:5] }}{% "
    "endfor %}{{ ns.found }}",
    "{{ {'b': 1, 'a': [1.5, none, true, 'é<&']} | tojson }}{{ tools | tojson(indent=4) }}{{ messages | "
    "tojson(sort_keys=true) }}",
    "{% macro part(p, q='z') -%} [{{ p }}|{{ q }}] {%- endmacro %}{% for m in messages %}{{ part(m.role) "
    "}}{{ part(m.content, q=1) }}"
    "{% endfor %}{% macro box() %}<{{ caller() }}>{% endmacro %}{% call box() %}in{% endcall %}",
    "{% for m in messages recursive %}{{ m.role if m is mapping else m }}{{ loop(['x', 'y']) if m is "
    "mapping }}{{ loop.depth }}{% endfor %}",
    "{% for a, b in {'x': 1, 'y': 2}.items() %}{{ a ~ ':' ~ b ~ none }}{{ loop.length }}{{ loop.last }}{{ "
    "loop.revindex }}{% else %}-{% endfor %}",
    "{{ messages | map(attribute='role') | join(', ') }}{{ messages | selectattr('role', 'equalto', 'user') "
    "| list | length }}"
    "{{ messages | rejectattr('role', 'in', ['user']) | map(attribute='content') | list }}",
    "{{ messages[-1].content.strip().split(' ')[0].replace('H', 'J').title() }}{{ '%s-%05d' % ('a', 42) "
    "}}{{ '{:>5}|{}'.format(1, 'x') }}",
    "{% set text %}{% for m in messages %}{{ m.content | trim }};{% endfor %}{% endset %}{{ text | length "
    "}}{{ text | indent(2) }}",
    "{{ messages is defined and x is not defined and messages | length > 0 }}{{ (1, 2) + (3,) }}{{ [1] * 3 "
    "}}{{ 7 // 2 }}{{ 2 ** 5 }}{{ -3 % 5 }}",
    "{{ 'a' in 'abc' and 'z' not in ['a'] and 1 < 2 <= 3 and messages[0] == messages[0] }}{{ messages[::-1] "
    "| first }}",
    "{% filter upper %}a{{ messages[0].role }}{% endfilter %}{% with y = 3 %}{{ y }}{% endwith %}{# gone "
    "#}{% raw %}{{ x }}{% endraw %}",
    "{{ '<b>' | e }}{{ ('<b>' | safe) ~ '<i>' }}{{ [3, 1, 2] | sort | reverse | list }}{{ [1, 2] | sum }}{{ "
    "'x' | default('y') }}",
    "{{ missing }}|{{ missing | default('d') }}|{{ messages[0].missing }}|{{ messages[0].get('missing', "
    "'g') }}|{{ none or 'o' }}",
    "{{ {'a': {'b': 1}} | items | list }}{{ {'b': 1, 'a': 2} | dictsort }}{{ [1, 2, 3] | batch(2) | list "
    "}}{{ cycler('a', 'b').next() }}",
    "{% for m in messages if m.role == 'user' %}{{ loop.index }}{{ loop.changed(m.role) }}{{ "
    "loop.cycle('a', 'b') }}{% endfor %}",
    "{%- block x %}{{ messages[0].role }}{% endblock %}{{ self.x() }}",
]


def reference(template: str, **given) -> str:
    """What plain Jinja renders with the settings that public chat templates are written for."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = (
        lambda x, ensure_ascii=False, indent=None, separators=None, sort_keys=False: json.dumps(
            x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
        )
    )
    return environment.from_string(template).render(**given)


@pytest.mark.parametrize("template", TEMPLATES)
@given(contents=st.lists(st.text(max_size=30), min_size=1, max_size=4), prompt=st.booleans())
@settings(max_examples=5, deadline=None)
def test_renders_what_jinja_renders(template, contents, prompt):
    roles = ("system", "user", "assistant")
    messages = [{"role": roles[i % 3], "content": text} for i, text in enumerate(contents)]
    expected = reference(
        template, messages=messages, tools=None, documents=None, add_generation_prompt=prompt, bos_token="<s>"
    )
    rendered = render(template, messages, add_generation_prompt=prompt, special_tokens={"bos_token": "<s>"})
    assert rendered == Rendered(expected, [])


def test_variables_win_over_special_tokens():
    given = {"special_tokens": {"bos_token": "<s>"}, "variables": {"bos_token": "<x>", "flag": True}}
    assert render("{{ bos_token }}{{ flag }}", [USER], **given).text == "<x>True"
    assert render("{{ f(2) }}", [USER], variables={"f": lambda x: x + 1}).text == "3"


def test_documents_and_tools_reach_the_template():
    def add(x: int, y: float = 1.0) -> float:
        """Add.

        Args:
            x: One number
            y: Another
        """

    schema = {"type": "function", "function": {"name": "given"}}
    template = "{% for t in tools %}{{ t.function.name }} {% endfor %}{{ documents[0]['title'] }}"
    assert render(template, [USER], tools=[add, schema], documents=[{"title": "T"}]).text == "add given T"
    assert render("{{ tools is none and documents is none }}", [USER]).text == "True"
    with pytest.raises(TokenizerInputError, match=r"documents\[0\]"):
        render("", [USER], documents=["text"])
    with pytest.raises(ArgumentError, match=r"tools\[1\] must be a function or a JSON schema, but is int"):
        render("", [USER], tools=[schema, 3])


def test_content_parts_pass_through_and_objects_stay_closed():
    class Image:
        size = (1, 2)

        def save(self, path):
            raise AssertionError("reached")

    content = [{"type": "image", "image": Image()}, {"type": "text", "text": "what?"}]
    template = (
        "{% for p in messages[0].content %}{{ '<image>' if p.type == 'image' else p.text }}{% endfor %}"
    )
    assert render(template, [{"role": "user", "content": content}]).text == "<image>what?"
    for reach in ("save('x')", "size.x", "_name.x"):
        with pytest.raises(TemplateError):
            render("{{ messages[0].content[0].image." + reach + " }}", [{"role": "user", "content": content}])


def test_spans_of_generation_blocks():
    template = (
        "{% for m in messages %}{% if m.role == 'assistant' %}A: {% generation %}{{ m.content }};{% "
        "endgeneration %}"
        "{% else %}U: {{ m.content | trim }}\n{% endif %}{% endfor %}"
    )
    text, spans = render(template, [USER, ASSISTANT, USER, ASSISTANT])
    assert [text[start:end] for start, end in spans] == ["Fine, thanks.\n;"] * 2
    assert render(template, [USER]).assistant_spans == []
    # Also at the very start, and where macros and blocks collect the text.
    text, spans = render("{% generation %}x{% endgeneration %}y", [USER])
    assert (text, spans) == ("xy", [(0, 1)])
    text, spans = render(
        "{% macro say(m) %}<{% generation %}{{ m }}{% endgeneration %}>{% endmacro %}{% set a = say('é') %}"
        "ab{{ a }}",
        [USER],
    )
    assert (text, spans) == ("ab<é>", [(3, 4)])
    text, _ = render(
        "{% set x = 1 %}{% generation %}{% set x = 2 %}{{ x }}{% endgeneration %}{{ x }}", [USER]
    )
    assert text == "21"


def test_continue_final_message():
    chat = [USER, {"role": "assistant", "content": "I am  "}]
    assert render(CHATML, chat, continue_final_message=True).text.endswith("assistant\nI am  ")
    trimmed = CHATML.replace("m['content']", "m['content'] | trim")
    assert render(trimmed, chat, continue_final_message=True).text.endswith("assistant\nI am")
    parts = [{"role": "assistant", "content": [{"type": "text", "text": "so"}, {"type": "image"}]}]
    assert render("{{ messages[0].content[0].text }}!", parts, continue_final_message=True).text == "so"
    with pytest.raises(ArgumentError, match="leaves out or changes 'I am'"):
        render("nothing", chat, continue_final_message=True)
    with pytest.raises(ArgumentError, match="needs text in the last message"):
        render("nothing", [{"role": "assistant", "content": None}], continue_final_message=True)
    with pytest.raises(ArgumentError, match="exclude each other"):
        render(CHATML, chat, continue_final_message=True, add_generation_prompt=True)


def forty(expression: str) -> str:
    """A template that sets ns.s to `expression` forty times."""
    loop = "{% for i in range(40) %}{% set ns.s = " + expression + " %}{% endfor %}"
    return "{% set ns = namespace(s='aaaaaaaa') %}" + loop


# A list in a list twice, sixty deep: 2 ** 60 values in all.
SHARED = "{% set ns = namespace(s=[1]) %}{% for i in range(60) %}{% set ns.s = [ns.s, ns.s] %}{% endfor %}"
# Rows C01 to C08 of the reliability table, and their relatives. Each must end as a TemplateError.
HOSTILE = {
    "C01 nested loops": "{% for a in range(99999) %}" * 3 + "{% endfor %}" * 3,
    "C02 one range": "{% for a in range(1000000000) %}{% endfor %}",
    "C03 times": "{{ 'a' * 20000000000 }}",
    "C03 list times": "{{ [1] * 20000000000 }}",
    "C04 plus": forty("ns.s + ns.s"),
    "C04 tilde": forty("ns.s ~ ns.s"),
    "C04 join": forty("[ns.s, ns.s] | join"),
    "C04 join method": forty("ns.s.join(['', '', ''])"),
    "C04 set block": forty("1").replace(" = 1 %}", " %}{{ ns.s }}{{ ns.s }}{% endset %}"),
    "C04 replace": forty("ns.s | replace('a', 'aa')"),
    "C04 replace method": forty("ns.s.replace('', 'aa')"),
    "C04 percent": forty("'%s%s' % (ns.s, ns.s)"),
    "C04 format": forty("'{0}{0}'.format(ns.s)"),
    "C04 format filter": forty("'%s%s' | format(ns.s, ns.s)"),
    "C04 macro": "{% macro m(n) %}{% if n %}{% set x = m(n - 1) %}{{ x }}{{ x }}{% else %}aaaaaaaa{% endif "
    "%}{% endmacro %}"
    "{{ m(60) | length }}",
    "C05 class walk": "{{ ''.__class__.__mro__ }}",
    "C05 alone": "{{ ''.__class__ }}",
    "C05 item": "{{ ''['__class__'] }}",
    "C06 format walk": "{{ '{0.__class__.__mro__}'.format([]) }}",
    "C06 format_map walk": "{{ '{a.__class__}'.format_map({'a': []}) }}",
    "C07 attr": "{{ '' | attr('format') }}",
    "C07 map attribute": "{{ [''] | map(attribute='__class__') | list }}",
    "C08 append": "{{ messages.append(1) }}",
    "C08 update": "{{ messages[0].update({'role': 'x'}) }}",
    "width of center": "{{ 'a' | center(10000000000) }}",
    "width of ljust": "{{ 'a'.ljust(10000000000) }}",
    "width in braces": "{{ '{:>10000000000}'.format(1) }}",
    "nested width": "{{ '{:>{}}'.format(1, 10000000000) }}",
    "width by item": "{{ ''['join'](['{:>9999999999}'['format'](1)]) }}",
    "width in percent": "{{ '%10000000000d' % 1 }}",
    "width by star": "{{ '%*d' % (10000000000, 1) }}",
    "tabs": "{{ ('\t' * 1000).expandtabs(1000000000) }}",
    "indent": "{{ 'a\nb' | indent(1000000000) }}",
    "batch": "{{ [1] | batch(1000000000, 'x') | list }}",
    "date": "{{ strftime_now('%1000000000d') }}",
    "power": "{{ 10 ** 10000000 }}",
    "squares": "{% set ns = namespace(n=7) %}{% for i in range(60) %}{% set ns.n = ns.n * ns.n %}{% endfor "
    "%}",
    "digits": "{{ ('1' * 4000000) | int(base=2) }}",
    "round": "{{ 1.5 | round(1000000000, 'ceil') }}",
    "shared lists as text": SHARED + "{{ ns.s }}",
    "shared lists as JSON": SHARED + "{{ ns.s | tojson }}",
    "shared lists compared": SHARED + "{% set a = ns.s %}" + SHARED + "{{ ns.s == a }}",
    "shared lists searched": SHARED + "{% set a = ns.s %}" + SHARED + "{{ ns.s in [a] }}",
    "shared tuples as key": SHARED.replace("[", "(").replace("]", ",)") + "{{ {}[ns.s] }}",
    "holds itself": "{% set ns = namespace() %}{% set ns.x = [ns] %}{{ ns.x }}",
    "endless macro": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "doubling macro": "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ "
    "m(60) }}",
    "recursive loop": "{% for x in [1, 1] recursive %}{{ loop([1, 1]) if loop.depth < 60 }}{% endfor %}",
    "long output": "{% for i in range(99999) %}" + "y" * 10000 + "{% endfor %}",
    "long block": "{% set x %}{% for i in range(99999) %}" + "y" * 10000 + "{% endfor %}{% endset %}",
    "hoard of texts": "{% set ns = namespace(l=[]) %}{% set b = 'a' * 3000000 %}"
    "{% for i in range(9999) %}{% set ns.l = ns.l + [b ~ i] %}{% endfor %}",
    "hoard of slices": "{% set ns = namespace(l=[]) %}{% set b = 'a' * 3000000 %}"
    "{% for i in range(9999) %}{% set ns.l = ns.l + [b[1:]] %}{% endfor %}",
    "hoard by map": "{% set m = (['a' * 4000000] * 10000) | map('upper') | list %}",
    "split": "{{ ('a ' * 1900000).split() | length }}",
    "search": "{% set s = range(99999) | list %}{% for i in s %}{% if -1 in s %}{% endif %}{% endfor %}",
    "replace again": "{% set s = 'a' * 2000000 %}{% for i in range(99999) %}{% set t = s.replace('a', 'b') "
    "%}{% endfor %}",
    "sum of lists": "{{ [[1] * 1000] * 1000 | sum(start=[]) }}",
    "include": "{% include '/etc/passwd' %}",
    "extends": "{% extends '/etc/passwd' %}",
    "internals of loop": "{% for x in [1] %}{{ loop._iterable }}{% endfor %}",
    "internals of self": "{{ self._TemplateReference__context.environment }}",
    "globals of a function": "{{ range.__globals__ }}{{ namespace.__init__.__globals__ }}",
    "method of a number": "{{ (5).to_bytes(10000000000, 'big') }}",
    "translate": "{{ 'a'.translate({97: 'b' * 1000000}) }}",
    "lipsum": "{{ lipsum(100000000) }}",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_templates_end_with_the_line(name):
    messages = [dict(USER)]
    template = "first line\n" + HOSTILE[name]
    with pytest.raises(TemplateError, match=r"^the chat template, line [23]: "):
        render(template, messages)
    assert messages == [USER]


LARGE = (
    "C03",
    "C04",
    "width",
    "nested",
    "tabs",
    "long",
    "hoard",
    "split",
    "digits",
    "batch",
    "replace",
    "sum",
)


def test_hostile_templates_take_little_memory():
    code = (
        "import sys, resource, json\n"
        "from phyla.preprocessing.text.chat import render\n"
        "render('{{ messages }}', [{'role': 'user'}])\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "for template in json.load(sys.stdin):\n"
        "    try: render(template, [{'role': 'user', 'content': 'x'}])\n"
        "    except Exception: pass\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, 'torch' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps([text for name, text in HOSTILE.items() if name.startswith(LARGE)]),
        capture_output=True,
        text=True,
        timeout=120,
    )
    grown, torch_loaded = done.stdout.split()
    unit = 1 if psutil.MACOS else 1024  # getrusage counts bytes there, kilobytes elsewhere
    assert int(grown) * unit < 64 << 20, done.stderr
    assert torch_loaded == "False"


@pytest.mark.parametrize(
    ("template", "what"),
    [
        ("a\nb\n{{ }}", "line 3: Expected an expression"),
        ("{% for %}", "line 1"),
        ("\n{{ x | nofilter }}", "line 2: No filter named 'nofilter'"),
        ("\n{{ raise_exception('no system role') }}", "line 2: it says: no system role"),
        ("\n\n{{ x.y }}", "line 3: 'x' is undefined"),
        ("{{ messages[0].content + 1 }}", "line 1: TypeError"),
        ("{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}", "cannot be compiled"),
        ("{% if 1 %}" * 2000 + "{% endif %}" * 2000, "cannot be compiled"),
        ("{{ 1 }}" * 6000, "more than 5000 tags"),
        ("x" * 300_000, "300000 characters"),
        (7, "must be a Jinja template as text, but is 7"),
        (None, "must be a Jinja template as text, but is None"),
    ],
)
def test_wrong_templates(template, what):
    with pytest.raises(TemplateError) as caught:
        render(template, [USER], source="chat_template of 'acme/foo'")
    assert what in str(caught.value)
    assert str(caught.value).startswith("chat_template of 'acme/foo'")


@pytest.mark.parametrize(
    ("messages", "what"),
    [
        ([{"content": "x"}], "messages[0] lacks 'role'; it has ['content']"),
        ([USER, {"content": "x"}], "messages[1] lacks 'role'"),
        (["x"], "messages[0] must be a dict"),
        ("x", "messages must be a list"),
        ({"role": "user"}, "messages must be a list"),
        ([{"role": "user", "content": {object(): 1}}], "must have texts as keys"),
    ],
)
def test_wrong_messages(messages, what):
    with pytest.raises(ValueError, match=re.escape(what)) as caught:
        render(CHATML, messages)
    assert isinstance(caught.value, ArgumentError)


def test_messages_that_hold_themselves():
    message = {"role": "user"}
    message["content"] = message
    with pytest.raises(ArgumentError, match="holds itself"):
        render(CHATML, [message])


def test_long_conversations_are_within_budget():
    chat = [
        {"role": "user" if i % 2 == 0 else "assistant", "content": f"message {i} " * 20} for i in range(5000)
    ]
    assert render(CHATML, chat).text.count("<|im_end|>") == 5000
    loop = "{% for m in messages %}{% set ns.s = ns.s ~ m.content %}{% endfor %}"
    template = "{% set ns = namespace(s='') %}" + loop + "{{ ns.s }}"
    assert len(render(template, chat[:1000]).text) == sum(len(m["content"]) for m in chat[:1000])
    document = [{"role": "user", "content": "Zeile é\n" * 250_000}]
    assert len(render(CHATML, document).text) > 2_000_000
    assert render("{{ messages[0].content.split('\n') | length }}", document).text == "250001"


def test_threads_have_budgets_of_their_own():
    failures = []

    def work(i: int) -> None:
        try:
            for _ in range(20):
                if i % 2:
                    assert render(CHATML, [USER, ASSISTANT]).text.count("<|im_end|>") == 2
                else:
                    with pytest.raises(TemplateError, match="range"):
                        render("{{ range(10000000) }}", [USER])
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


EXPRESSIONS = st.recursive(
    st.sampled_from(
        [
            "1",
            "'ab'",
            "messages",
            "messages[0]",
            "x",
            "none",
            "[]",
            "{}",
            "(1, 'a')",
            "range(9)",
            "loop",
            "namespace",
            "self",
            "''",
        ]
    ),
    lambda inner: st.one_of(
        st.builds(
            "({} {} {})".format,
            inner,
            st.sampled_from(["+", "*", "~", "%", "**", "//", "==", "in", "and", "<"]),
            inner,
        ),
        st.builds(
            "{}.{}".format,
            inner,
            st.sampled_from(["role", "upper", "format", "items", "__class__", "mro", "pop", "index"]),
        ),
        st.builds("{}({})".format, inner, inner),
        st.builds("{}[{}]".format, inner, inner),
        st.builds(
            "{}|{}".format,
            inner,
            st.sampled_from(["upper", "list", "tojson", "join", "map('upper')", "sort", "length", "first"]),
        ),
        st.builds("[{}, {}]".format, inner, inner),
    ),
    max_leaves=12,
)


@given(expression=EXPRESSIONS)
@settings(max_examples=300, deadline=None)
def test_any_expression_renders_or_is_a_template_error(expression):
    try:
        render("{{ " + expression + " }}", [USER, ASSISTANT])
    except TemplateError:
        pass


@given(template=st.text(st.sampled_from("{}%#-|.'\"[]() \nabif"), max_size=60))
@settings(max_examples=200, deadline=None)
def test_any_text_renders_or_is_a_template_error(template):
    try:
        expected = reference(
            template, messages=[USER], tools=None, documents=None, add_generation_prompt=False
        )
    except (jinja2.TemplateError, TypeError, ValueError, AttributeError, LookupError):
        expected = None
    try:
        text = render(template, [USER]).text
    except TemplateError:
        text = None
    assert text == expected or expected is None or "generator" in expected


def test_schema_of_a_function():
    def forecast(
        city: str,
        days: int = 3,
        units: str | None = None,
        where: list[float] = (),
        extra: dict[str, int] | None = None,
    ) -> dict:
        """Tell the weather.

        More about it.

        Args:
            city: The city,
                with its country
            days: How many days: up to 7
            units: The units (choices: ["metric", "imperial"])
            where: Latitude and longitude
            extra: More

        Returns:
            What is expected

        Raises:
            OSError: never
        """

    assert get_json_schema(forecast) == {
        "type": "function",
        "function": {
            "name": "forecast",
            "description": "Tell the weather.\n\nMore about it.",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string", "description": "The city, with its country"},
                    "days": {"type": "integer", "description": "How many days: up to 7"},
                    "units": {
                        "type": "string",
                        "nullable": True,
                        "enum": ["metric", "imperial"],
                        "description": "The units",
                    },
                    "where": {
                        "type": "array",
                        "items": {"type": "number"},
                        "description": "Latitude and longitude",
                    },
                    "extra": {
                        "type": "object",
                        "additionalProperties": {"type": "integer"},
                        "nullable": True,
                        "description": "More",
                    },
                },
                "required": ["city"],
            },
            "return": {"type": "object", "description": "What is expected"},
        },
    }


def test_functions_that_cannot_be_described():
    def silent(x: int):
        pass

    def untyped(x):
        """Doc.

        Args:
            x: it
        """

    def undescribed(x: int):
        """Doc."""

    for function, what in (
        (silent, "docstring"),
        (untyped, "type hint"),
        (undescribed, "must describe argument 'x'"),
    ):
        with pytest.raises(ArgumentError, match=f"{function.__name__}|{what}") as caught:
            get_json_schema(function)
        assert what in str(caught.value)
