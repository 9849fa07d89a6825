"""Skills with tools: calling the right one of those given, and putting its result in words."""

from __future__ import annotations

import json

from . import words
from .chat import Exchange, Message, Thread, Tool, ask, assistant, assistant_text, calls, user
from .draw import Draw
from .skills_numbers import number
from .tool_cases import BROAD, COMMON, SPECIAL, Arguments, Case

NO_TOOL = "None of my tools can do that."


def toolbox(d: Draw, topics: set[str], count: int) -> list[Tool]:
    """`count` tools, none of these topics; adds theirs."""
    tools: list[Tool] = []
    names: set[str] = set()
    while len(tools) < count:
        case = d.pick(COMMON + SPECIAL)(d)
        if case.topic not in topics and case.name not in names:
            topics.add(case.topic)
            names.add(case.name)
            tools.append(case.tool)
    return tools


def result(d: Draw, case: Case) -> tuple[str, str]:
    """A tool's result as text, and the sentence without its full stop that tells it."""
    noun = case.topic if case.topic.replace(" ", "").isalpha() else "value"
    kind = d.rng.random()
    if kind < 0.08:
        error = d.pick(words.ERRORS)
        return json.dumps({"error": error}), f"the tool reported an error: {error}"
    if kind < 0.2:
        text = free_text(d)
        return text, f"the result is {text}"
    pairs: Arguments = {}
    if kind < 0.6:
        pairs[d.pick((noun.replace(" ", "_"), "result", "value", "status"))] = scalar(d)
    else:
        options = (
            "temperature",
            "condition",
            "humidity",
            "wind",
            "status",
            "unit",
            "date",
            "source",
            noun.replace(" ", "_"),
            *words.PARAMS,
        )
        for key in d.distinct(lambda: d.pick(options), d.integer(2, 4)):
            pairs[key] = scalar(d)
    told = [f"the {key.replace('_', ' ')} is {value}" for key, value in pairs.items()]
    return json.dumps(pairs), told[0] if len(told) == 1 else ", ".join(told[:-1]) + " and " + told[-1]


def free_text(d: Draw) -> str:
    """A tool's result that is no JSON."""
    kind = d.rng.random()
    if kind < 0.3:
        return d.pick((str(number(d)), d.pick(words.STATUSES), d.word()))
    if kind < 0.6:
        measured = f"{number(d)} {d.pick(('degrees', 'euros', 'minutes', d.word()))}"
        return measured + d.pick(("", f" and {d.pick(words.CONDITIONS)}"))
    return " ".join(d.word() for _ in range(d.integer(2, 5)))


def scalar(d: Draw) -> str | int | float:
    """A value in a tool's result."""
    kind = d.rng.random()
    if kind < 0.4:
        return number(d)
    if kind < 0.5:
        return d.integer(0, 999) / 10
    return d.pick(words.CONDITIONS) if kind < 0.65 else d.pick(words.STATUSES) if kind < 0.8 else d.word()


def told_results(d: Draw, case: Case) -> tuple[list[Message], str]:
    """The tools' messages after the calls, and the assistant's answer."""
    results = [result(d, case) for _ in case.arguments]
    messages = [{"role": "tool", "content": text} for text, _ in results]
    if len(results) == 1:
        sentence = results[0][1]
        return messages, sentence[:1].upper() + sentence[1:] + "."
    labels = [next(iter(arguments.values())) for arguments in case.arguments]
    return messages, " ".join(f"For {label}: {told}." for label, (_, told) in zip(labels, results, strict=True))


def use(d: Draw, case: Case) -> list[Exchange]:
    """Two exchanges: the question with the call, then the tools' results with the answer."""
    call = calls(*((case.name, arguments) for arguments in case.arguments))
    called = Exchange((user(case.question), call), (assistant_text(call),))
    messages, answer = told_results(d, case)
    return [called, Exchange((*messages, assistant(answer)), (answer,))]


def make_case(d: Draw) -> Case:
    """A case of any kind."""
    kind = d.rng.random()
    return d.pick(COMMON if kind < 0.65 else SPECIAL if kind < 0.87 else BROAD)(d)


def tool_use(d: Draw) -> Thread:
    """One to four tools, one or two requests that one of them fits, calls and results told."""
    case = make_case(d)
    topics = {case.topic}
    tools = [case.tool, *toolbox(d, topics, d.pick((0, 1, 1, 2, 2, 3)))]
    d.rng.shuffle(tools)
    exchanges = use(d, case)
    if d.chance(0.25):
        exchanges.append(misfit(d, topics))
    return Thread(tuple(exchanges), tools=tuple(tools), exclusive=case.topic in ("calculator", "search", "translate"))


def misfit(d: Draw, topics: set[str]) -> Exchange:
    """A request for a tool of none of these topics."""
    while (case := d.pick(COMMON + SPECIAL)(d)).topic in topics:
        pass
    return ask(case.question, NO_TOOL)


def no_tool(d: Draw) -> Thread:
    """Tools are given, but none fits what is asked."""
    topics: set[str] = set()
    tools = toolbox(d, topics, d.integer(1, 4))
    return Thread((misfit(d, topics),), tools=tuple(tools))
