"""Conversations for training, and held-out questions for evaluation, out of the skills.

Run `python -m scripts.demo_model.generate` to read some of them.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import accumulate

from .chat import Exchange, Message, Thread, Tool, ask, render
from .draw import Draw
from .skills_numbers import add, add_three, count, multiply, several, sort_numbers, subtract, table
from .skills_talk import REPEAT, capital_of, capitalised, persona, remember, repeat, talk, unknown
from .skills_text import as_json, lookup, lookup_long
from .skills_tools import no_tool, tool_use
from .skills_words import days, months, sort_words, spell

Skill = Callable[[Draw], Thread]


def echo(d: Draw) -> Thread:
    """Saying again some words out of another thread. So every token is met as something to write, not only to read."""
    thread = leading(d)
    said = [message["content"] or "" for exchange in thread.exchanges for message in exchange.messages]
    spoken = d.pick([*said, *map(json.dumps, thread.tools)]).split()
    first = d.integer(0, max(0, len(spoken) - 3))
    text = " ".join(spoken[first : first + d.integer(2, 12)]) or "yes"
    return Thread((ask(capitalised(d, d.pick(REPEAT)).format(t=text), text),))


WEIGHTS: dict[Skill, float] = {
    talk: 7, capital_of: 1.5, unknown: 6, remember: 3, repeat: 3, echo: 4, add: 8, add_three: 2, subtract: 9, multiply: 3,
    table: 2, count: 3, sort_numbers: 7, several: 6, spell: 9, sort_words: 11, days: 3, months: 3, lookup: 28, as_json: 12,
}  # fmt: skip
SKILLS = tuple(WEIGHTS)
CUMULATIVE = tuple(accumulate(WEIGHTS.values()))
SYSTEM_PROMPTS = (
    "You are a helpful assistant.", "You are a helpful assistant.", "You are a helpful AI assistant.", "Be brief.",
    "Answer briefly.",
    "You are a friendly chatbot.", "Help the user.", "You are an assistant. Answer as well as you can.",
    "You are helpful and polite.",
    "You are the demo model of Penstock.", "Be helpful, honest and harmless.", "Answer the question.",
    "You are a concise assistant.",
)  # fmt: skip
SHORT_CHARS = 2_600  # about 800 tokens: what one conversation for a row of 1,024 may hold
LONG_CHARS = 11_500  # the same for a row of 4,096


@dataclass(frozen=True, slots=True)
class Sample:
    """One question of the evaluation."""

    skill: str
    messages: tuple[Message, ...]  # ends where the assistant has to answer
    tools: tuple[Tool, ...]
    accepted: tuple[str, ...]  # the texts that count as right


def some_skill(d: Draw, with_tools: bool = False) -> Thread:
    """A thread that fits into another one's conversation. Next to tools nothing that a tool might do."""
    while True:
        skill = pick_skill(d)
        if with_tools and skill is unknown:
            continue
        thread = skill(d)
        if thread.system is None and not thread.exclusive:
            return thread


def pick_skill(d: Draw) -> Skill:
    """A skill by weight."""
    return d.rng.choices(SKILLS, cum_weights=CUMULATIVE)[0]


def leading(d: Draw) -> Thread:
    """The thread that settles tools and system prompt of a conversation."""
    kind = d.rng.random()
    if kind < 0.2:
        return tool_use(d)
    if kind < 0.25:
        return no_tool(d)
    if kind < 0.3:
        return persona(d)
    return pick_skill(d)(d)


def conversation(d: Draw, max_chars: int) -> str:
    """A conversation of one or more threads as text, cut before it grows longer than `max_chars`."""
    lead = lookup_long(d) if max_chars == LONG_CHARS and d.chance(0.5) else leading(d)
    exchanges = list(lead.exchanges)
    wanted = 1 if lead.exclusive else d.pick((1, 1, 2, 3, 4, 6)) if max_chars < LONG_CHARS else d.integer(2, 100)
    later: list[Exchange] = []
    if lead.apart:
        exchanges, later = exchanges[:1], exchanges[1:]
    before: list[Exchange] = []
    size = sum(exchange_chars(exchange) for exchange in (*exchanges, *later)) + 400 * len(lead.tools)
    for _ in range(wanted - 1):
        thread = some_skill(d, bool(lead.tools))
        added = sum(map(exchange_chars, thread.exchanges))
        if size + added > max_chars:
            break
        size += added
        if lead.apart or d.chance(0.6):
            exchanges.extend(thread.exchanges)
        else:
            before.extend(thread.exchanges)
    return render(with_system(d, lead, [m for e in (*before, *exchanges, *later) for m in e.messages]), lead.tools)


def exchange_chars(exchange: Exchange) -> int:
    """About how long an exchange is as text."""
    return sum(len(message["content"] or "x" * 100) + 30 for message in exchange.messages)


def with_system(d: Draw, thread: Thread, messages: list[Message]) -> list[Message]:
    """The messages, with the thread's system prompt or now and then a common one in front."""
    system = thread.system if thread.system is not None else d.pick(SYSTEM_PROMPTS) if d.chance(0.4) else None
    return messages if system is None else [{"role": "system", "content": system}, *messages]


def conversations(seed: str, max_chars: int) -> Iterator[str]:
    """Training conversations without end; the same seed gives the same ones."""
    d = Draw(random.Random(seed))
    while True:
        yield conversation(d, max_chars)


def sample(d: Draw, skill: str, thread: Thread, last: int) -> Sample:
    """The evaluation's question at exchange `last` of a thread, after the exchanges before it."""
    messages = [m for exchange in thread.exchanges[: last + 1] for m in exchange.messages]
    return Sample(skill, tuple(with_system(d, thread, messages[:-1])), thread.tools, thread.exchanges[last].accepted)


def first_of(name: str, skill: Skill, last: int = 0) -> Callable[[Draw], Sample]:
    """Evaluates one exchange of the skill's threads, drawn again until they have it."""

    def make(d: Draw) -> Sample:
        while len((thread := skill(d)).exchanges) <= last:
            pass
        return sample(d, name, thread, last)

    return make


def multi_turn(d: Draw) -> Sample:
    """A follow-up question, or the second thread of a conversation, after up to four threads of other skills."""
    before = [some_skill(d) for _ in range(d.integer(1, 4))]
    thread = some_skill(d)
    while len(thread.exchanges) == 1 and d.chance(0.8):
        thread = some_skill(d)
    if thread.apart:
        thread = Thread((thread.exchanges[0], *(e for t in before for e in t.exchanges), *thread.exchanges[1:]))
    else:
        thread = Thread((*(e for t in before for e in t.exchanges), *thread.exchanges))
    return sample(d, "multi-turn", thread, len(thread.exchanges) - 1)


def remembered(d: Draw) -> Sample:
    """What the user said about himself, asked for after other talk."""
    thread = remember(d)
    between = [e for _ in range(d.integer(0, 3)) for e in some_skill(d).exchanges]
    return sample(d, "remember", Thread((thread.exchanges[0], *between, thread.exchanges[1])), len(between) + 1)


EVALUATIONS: dict[str, Callable[[Draw], Sample]] = {
    "small talk": first_of("small talk", talk),
    "persona": first_of("persona", persona),
    "beyond it": first_of("beyond it", unknown),
    "remember": remembered,
    "repeat": first_of("repeat", repeat),
    "add": first_of("add", add),
    "add three": first_of("add three", add_three),
    "subtract": first_of("subtract", subtract),
    "multiply": first_of("multiply", multiply),
    "times table": first_of("times table", table),
    "several": first_of("several", several),
    "count": first_of("count", count),
    "sort numbers": first_of("sort numbers", sort_numbers),
    "sort words": first_of("sort words", sort_words),
    "spell": first_of("spell", spell),
    "days": first_of("days", days),
    "months": first_of("months", months),
    "look up": first_of("look up", lookup),
    "look up, long": first_of("look up, long", lookup_long, last=2),
    "JSON": first_of("JSON", as_json),
    "tool call": first_of("tool call", tool_use),
    "tool result": first_of("tool result", tool_use, last=1),
    "no tool fits": first_of("no tool fits", no_tool),
    "multi-turn": multi_turn,
}


def evaluation(name: str, count: int, seed: str) -> list[Sample]:
    """`count` different held-out samples of one evaluation."""
    d = Draw(random.Random(f"{seed}/{name}"), held_out=True)
    found: dict[str, Sample] = {}
    while len(found) < count:
        made = EVALUATIONS[name](d)
        found.setdefault(render(made.messages, made.tools), made)
    return list(found.values())


def main() -> None:
    """Prints some conversations and one held-out sample of each skill."""
    stream = conversations("show", SHORT_CHARS)
    for _ in range(20):
        print(next(stream), "-" * 80, sep="")
    for name in EVALUATIONS:
        made = evaluation(name, 1, "show")[0]
        print(f"=== {name}\n{render(made.messages, made.tools)[-300:]}>>> {' | '.join(made.accepted)}")


if __name__ == "__main__":
    main()
