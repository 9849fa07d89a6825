"""Tools and requests that they fit: what each case of a tool's use is made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from . import words
from .chat import Tool
from .draw import Draw
from .skills_numbers import number
from .skills_text import with_article

Arguments = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Case:
    """A tool, questions that call for it, and the arguments of each call."""

    tool: Tool
    question: str
    arguments: tuple[Arguments, ...]
    topic: str  # tools of one topic never stand side by side

    @property
    def name(self) -> str:
        """The tool's name."""
        return str(self.tool["function"]["name"])


def make_tool(name: str, description: str, properties: Arguments, required: list[str]) -> Tool:
    """A tool in OpenAI's format."""
    parameters = {"type": "object", "properties": properties, "required": required}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


def typed(kind: str, description: str = "") -> Arguments:
    """The schema of one parameter."""
    return {"type": kind, "description": description} if description else {"type": kind}


def styled(d: Draw, verb: str, noun: str) -> str:
    """A function's name in one of the usual styles."""
    parts = [*verb.split(), *noun.replace("-", " ").split()]
    style = d.rng.random()
    if style < 0.75:
        return "_".join(parts)
    if style < 0.9:
        return parts[0] + "".join(part.capitalize() for part in parts[1:])
    return "_".join([*parts[1:], parts[0]]) if style < 0.95 else "".join(part.capitalize() for part in parts)


PLACE_ASK = (
    "what is the {n} in {v}?", "tell me the {n} in {v}.", "{n} in {v}?", "what's the {n} in {v}?",
    "I need the {n} for {v}.",
    "can you check the {n} in {v}?", "please look up the {n} of {v}.", "what is the {n} of {v}?",
    "how is the {n} in {v}?", "show me the {n} for {v}.",
    "do you know the {n} in {v}?", "what is the current {n} in {v}?", "give me the {n} for {v}.",
    "find the {n} in {v}.",
)  # fmt: skip
ITEM_ASK = (
    "what is the {n} of {v}?", "tell me the {n} of {v}.", "{n} of {v}?", "what's the {n} for {v}?",
    "I need the {n} for {v}.",
    "can you check the {n} of {v}?", "please look up the {n} of {v}.", "show me the {n} for {v}.",
    "give me the {n} of {v}.", "find the {n} for {v}.",
)  # fmt: skip
PERSON_ASK = (
    "what is {v}'s {n}?", "tell me {v}'s {n}.", "what is the {n} of {v}?", "what's the {n} of {v}?",
    "I need {v}'s {n}.", "{n} of {v}?",
    "can you look up {v}'s {n}?", "please find the {n} of {v}.", "show me the {n} for {v}.", "give me {v}'s {n}.",
)  # fmt: skip
GET = ("get", "get", "get", "find", "fetch", "lookup", "check", "show", "query", "get current", "search")
DESCRIBE = (
    "Get the {n} {of}", "Returns the {n} {of}", "Look up the {n} {of}", "Gets the current {n} {of}",
    "Find the {n} {of}.", "{n} {of}",
    "This function returns the {n} {of}.", "Get {n}", "Fetch the {n} {of}",
)  # fmt: skip
WEATHER_ASK = (
    "what's the weather like in {v}?", "how is the weather in {v} today?", "is it raining in {v}?",
    "how warm is it in {v}?",
    "will it rain in {v}?", "do I need an umbrella in {v}?", "weather in {v} please", "how cold is it in {v}?",
    "is it sunny in {v}?",
)  # fmt: skip
WEATHER = frozenset(("weather", "temperature", "forecast", "humidity", "rainfall", "wind speed"))
PLACE_KEYS = ("city", "city", "location", "place", "town", "city_name")
ITEM_KEYS = ("item", "product", "item_name", "product_name", "article")
PERSON_KEYS = ("name", "person", "user", "employee", "customer", "username")


def some_noun(d: Draw, nouns: tuple[str, ...]) -> str:
    """What a tool is asked for: a listed noun, or any words, because people bring tools of their own."""
    kind = d.rng.random()
    if kind < 0.6:
        return d.pick(nouns)
    if kind < 0.8:
        return d.word()
    return f"{d.word()} {d.pick(('level', 'report', 'rate', 'index', 'list', 'number', d.word()))}"


def attribute_case(d: Draw) -> Case:
    """A tool that gives one attribute of a place, an item or a person; at times for two of them at once."""
    kind = d.rng.random()
    nouns: tuple[str, ...]
    keys: tuple[str, ...]
    asks: tuple[str, ...]
    if kind < 0.5:
        nouns, keys, asks, make, of = (
            words.PLACE_NOUNS,
            PLACE_KEYS,
            PLACE_ASK,
            d.city,
            d.pick(("of a city", "for a location", "in a given city")),
        )
    elif kind < 0.75:
        nouns, keys, asks, make, of = (
            words.ITEM_NOUNS,
            ITEM_KEYS,
            ITEM_ASK,
            d.word,
            d.pick(("of an item", "for a product", "of a product")),
        )
    else:
        nouns, keys, asks, make, of = (
            words.PERSON_NOUNS,
            PERSON_KEYS,
            PERSON_ASK,
            d.name,
            d.pick(("of a person", "for a user", "of an employee")),
        )
    noun = "weather" if make == d.city and not d.held_out and d.chance(0.1) else d.fresh("noun", lambda: some_noun(d, nouns))
    key = d.pick(keys)
    properties = {
        key: typed("string", d.pick(("", "", f"The {key.replace('_', ' ')}", f"Name of the {key.replace('_', ' ')}")))
    }
    values = d.distinct(make, 2 if d.chance(0.15) else 1)
    if noun == "weather" and d.chance(0.5):
        asks = WEATHER_ASK
    question = d.phrase(asks, n=noun, v=" and ".join(values))
    arguments: Arguments = {}
    if noun in ("weather", "temperature", "forecast") and d.chance(0.6):
        properties["unit"] = {"type": "string", "enum": ["celsius", "fahrenheit"]}
        if d.chance(0.5):
            unit = d.pick(("celsius", "fahrenheit"))
            question = f"{question.rstrip('?.')} in {d.pick((unit, unit.capitalize()))}{d.pick(('?', '.', ''))}"
            arguments = {"unit": unit}
    elif d.chance(0.1):
        properties["day"] = typed("string", d.pick(("", "Day of the week")))
        if d.chance(0.6):
            day = d.pick(words.DAYS)
            question = f"{question.rstrip('?.')} on {day}{d.pick(('?', '.', ''))}"
            arguments = {"day": day}
    tool = make_tool(styled(d, d.pick(GET), noun), d.pick(DESCRIBE).format(n=noun, of=of), properties, [key])
    return Case(tool, question, tuple({key: value, **arguments} for value in values), "weather" if noun in WEATHER else noun)


def generic_case(d: Draw) -> Case:
    """A command with one to three typed parameters, each named in the request."""
    verb, noun = d.fresh(
        "command",
        lambda: (d.pick(words.VERBS) if d.chance(0.85) else d.word(), d.pick(words.OBJECTS) if d.chance(0.7) else d.word()),
    )
    keys = d.distinct(d.parameter, d.integer(1, 3))
    arguments: Arguments = {}
    properties: Arguments = {}
    for key in keys:
        whole = key in words.INTEGER_PARAMS
        arguments[key] = number(d) if whole else d.word()
        properties[key] = typed("integer" if whole else "string", d.pick(("", "", f"The {key} of the {noun}")))
    joint = d.pick((" and ", ", "))
    shown = joint.join(f"{key} {value}" for key, value in arguments.items())
    asks = ("{verb} the {noun} with {s}.", "please {verb} the {noun} with {s}.", "{verb} this {noun}, {s}.",
        "can you {verb} the {noun} with {s}?",
            "I want you to {verb} the {noun}: {s}.")  # fmt: skip
    describe = (
        f"{verb.capitalize()} the {noun}",
        f"{verb.capitalize()} {with_article(noun)}",
        f"Use this to {verb} the {noun}.",
    )
    tool = make_tool(styled(d, verb, noun), d.pick(describe), properties, list(keys))
    return Case(tool, d.phrase(asks, verb=verb, noun=noun, s=shown), (arguments,), f"{verb} {noun}")


def timer_case(d: Draw) -> Case:
    """Setting a timer."""
    unit = d.pick(("minutes", "seconds"))
    n = d.fresh("timer", lambda: d.integer(1, 120))
    asks = (
        "set a timer for {n} {u}.",
        "start a {n} {u} timer.",
        "timer for {n} {u}",
        "wake me in {n} {u}.",
        "remind me in {n} {u}.",
    )
    tool = make_tool(d.pick(("set_timer", "start_timer", "timer")), "Set a timer", {unit: typed("integer")}, [unit])
    return Case(tool, d.phrase(asks, n=n, u=unit), ({unit: n},), "timer")


def message_case(d: Draw) -> Case:
    """Sending a message."""
    to, text = d.name(), d.fresh("message", lambda: " ".join(d.word() for _ in range(d.integer(2, 5))))
    asks = (
        "send {to} the message: {t}",
        "tell {to}: {t}",
        "write to {to}: {t}",
        "send a message to {to} saying {t}",
        "message {to}: {t}",
    )
    to_key, text_key = d.pick(("to", "recipient", "name")), d.pick(("text", "message", "body"))
    tool = make_tool(d.pick(("send_message", "send_email", "sendMessage", "send_sms")),
    d.pick(("Send a message to somebody", "Send a message")),
                     {to_key: typed("string"), text_key: typed("string")}, [to_key, text_key])  # fmt: skip
    question = d.pick(asks).format(to=to, t=text)
    return Case(
        tool, question[:1].upper() + question[1:] if d.chance(0.7) else question, ({to_key: to, text_key: text},), "message"
    )


def order_case(d: Draw) -> Case:
    """Asking after an order, or something else that has a number."""
    noun = d.pick(("order", "order", "ticket", "invoice", "package", "booking", "flight", "case"))
    n = d.fresh("order", lambda: d.integer(1, d.pick((99, 999, 9999, 99_999))))
    asks = ("where is my {o} {n}?", "what is the status of {o} {n}?", "track {o} {n}.", "look up {o} {n}.",
        "show me {o} number {n}.",
            "I want to know about {o} {n}.", "is {o} {n} on its way?", "{o} {n}?",
            "please check my {o}, number {n}.")  # fmt: skip
    key = d.pick((f"{noun}_id", f"{noun}_number", "id", "number"))
    name = styled(d, d.pick(("get", "lookup", "track", "find", "check")), noun + d.pick(("", "", " status")))
    tool = make_tool(
        name,
        d.pick((f"Look up the {noun} by its id", f"Get the status of the {noun}", f"Track the {noun}")),
        {key: typed("integer")},
        [key],
    )
    return Case(tool, d.phrase(asks, o=noun, n=n), ({key: n},), noun)


def convert_case(d: Draw) -> Case:
    """Converting an amount of money."""
    source, target = d.some(words.CURRENCIES, 2)
    amount = d.fresh("convert", lambda: d.integer(1, 999))
    asks = (
        "convert {a} {s} to {t}.",
        "how much is {a} {s} in {t}?",
        "{a} {s} in {t}?",
        "what are {a} {s} in {t}?",
        "change {a} {s} into {t}.",
    )
    first, second = d.pick((("from", "to"), ("from_currency", "to_currency"), ("source", "target")))
    tool = make_tool(d.pick(("convert_currency", "convert", "exchange")),
    "Convert an amount of money from one currency to another",
                     {"amount": typed("number"), first: typed("string"), second: typed("string")}, ["amount",
                     first, second])  # fmt: skip
    return Case(
        tool, d.phrase(asks, a=amount, s=source, t=target), ({"amount": amount, first: source, second: target},), "convert"
    )


def translate_case(d: Draw) -> Case:
    """Translating a word."""
    word, language = d.word(), d.pick(words.LANGUAGES)
    asks = ("translate {w} into {l}.", "translate the word {w} to {l}.", "what is {w} in {l}?", "how do you say {w} in {l}?")
    key = d.pick(("language", "target_language", "to"))
    tool = make_tool(
        d.pick(("translate", "translate_text")),
        "Translate a text",
        {"text": typed("string"), key: typed("string")},
        ["text", key],
    )
    return Case(tool, d.phrase(asks, w=word, l=language), ({"text": word, key: language},), "translate")


def light_case(d: Draw) -> Case:
    """Switching a light."""
    room, on = d.fresh("room", lambda: d.pick(words.ROOMS) if d.chance(0.6) else d.word()), d.chance(0.5)
    state = "on" if on else "off"
    asks = (
        "turn {s} the light in the {r}.",
        "switch {s} the {r} light.",
        "{r} light {s}",
        "turn the light in the {r} {s}.",
        "light {s} in the {r}.",
    )
    tool = make_tool(
        d.pick(("set_light", "switch_light", "light")),
        "Switch the light in a room",
        {"room": typed("string"), "on": typed("boolean")},
        ["room", "on"],
    )
    return Case(tool, d.phrase(asks, s=state, r=room), ({"room": room, "on": on},), "light")


def booking_case(d: Draw) -> Case:
    """Booking a table."""
    place, people, day = d.word().capitalize(), d.integer(1, 12), d.pick(words.DAYS)
    key = d.pick(("people", "guests", "party_size"))
    asks = (
        "book a table for {p} at {v} on {d}.",
        "reserve a table at {v} for {p} people on {d}.",
        "table for {p} at {v}, {d}, please.",
    )
    tool = make_tool(d.pick(("book_table", "reserve_table")), "Book a table in a restaurant",
                     {"restaurant": typed("string"), key: typed("integer"), "day": typed("string")}, ["restaurant",
                     key, "day"])  # fmt: skip
    return Case(tool, d.phrase(asks, p=people, v=place, d=day), ({"restaurant": place, key: people, "day": day},), "booking")


def calculator_case(d: Draw) -> Case:
    """A calculator for two numbers, also large ones."""
    word, sign = d.pick((("add", "+"), ("multiply", "*"), ("subtract", "-"), ("divide", "/")))
    a, b = d.fresh("calculator", lambda: (d.integer(0, 9999), d.integer(1, 9999)))
    question = d.phrase(("what is {a} {s} {b}?", "{a}{s}{b}", "calculate {a} {s} {b}.", "{a} {s} {b}"), a=a, b=b, s=sign)
    if d.chance(0.5):
        tool = make_tool(
            d.pick(("calculate", "calculator", "eval")),
            "Calculate an expression",
            {"expression": typed("string")},
            ["expression"],
        )
        return Case(tool, question, ({"expression": f"{a} {sign} {b}"},), "calculator")
    tool = make_tool(
        d.pick((word, f"{word}_numbers", f"{word}_two_numbers")),
        f"{word.capitalize()} two numbers",
        {"a": typed("number"), "b": typed("number")},
        ["a", "b"],
    )
    return Case(tool, question, ({"a": a, "b": b},), "calculator")


def search_case(d: Draw) -> Case:
    """Searching the web."""
    query = d.fresh("search", lambda: " ".join(d.word() for _ in range(d.integer(1, 4))))
    asks = ("search the web for {q}", "search for {q}", "look up {q} on the internet", "google {q}", "find pages about {q}")
    tool = make_tool(d.pick(("search", "web_search", "search_web")), "Search the web", {"query": typed("string")}, ["query"])
    return Case(tool, d.pick(asks).format(q=query), ({"query": query},), "search")


CaseMaker = Callable[[Draw], Case]
COMMON: tuple[CaseMaker, ...] = (attribute_case,) * 6 + (generic_case,) * 4
SPECIAL: tuple[CaseMaker, ...] = (timer_case, message_case, order_case, convert_case, light_case, booking_case)
BROAD: tuple[CaseMaker, ...] = (calculator_case, search_case, translate_case)  # fit so much that they are no distractors
