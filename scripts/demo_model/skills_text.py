"""Skills with a given text: looking something up in it, and writing facts as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass

from . import words
from .chat import Thread, ask
from .draw import Draw
from .skills_numbers import number

Value = str | int


def with_article(noun: str) -> str:
    """a baker, an engineer."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


@dataclass(frozen=True, slots=True)
class Attribute:
    """Something a text can say about somebody or something."""

    key: str
    sentences: tuple[str, ...]  # the first one is also the answer
    questions: tuple[str, ...]
    who: tuple[str, ...]  # questions for the subject, given the value
    value: Callable[[Draw], Value]


PERSON = (
    Attribute("city", ("{p} lives in {v}.", "{p} has a flat in {v}.", "{v} is where {p} lives.",
    "the home of {p} is {v}."),
              ("where does {p} live?", "in which city does {p} live?", "which city does {p} live in?"),
              ("who lives in {v}?", "which person lives in {v}?"), Draw.city),
    Attribute("job", ("{p} works as {v}.", "{p} is {v}.", "{p} earns money as {v}."),
              ("what is {p}'s job?", "what does {p} do for a living?", "what does {p} work as?",
              "what is the job of {p}?"),
              ("who works as {v}?", "who is {v}?"), lambda d: with_article(d.pick(words.JOBS))),
    Attribute("age", ("{p} is {v} years old.", "{p} turned {v} this year.", "{p} has reached the age of {v}."),
              ("how old is {p}?", "what is {p}'s age?", "what age is {p}?"), ("who is {v} years old?", "who is {v}?"),
              lambda d: d.integer(3, 99)),
    Attribute("color", ("{p}'s favorite color is {v}.", "{p} likes {v} best of all colors.",
    "the favorite color of {p} is {v}."),
              ("what is {p}'s favorite color?", "which color does {p} like best?", "what color does {p} like?"),
              ("whose favorite color is {v}?",), lambda d: d.pick(words.COLORS)),
    Attribute("pet", ("{p} has {v}.", "{p} keeps {v} at home.", "{p} owns {v}."),
              ("what pet does {p} have?", "which animal does {p} have?", "what is {p}'s pet?"),
              ("who has {v}?", "who owns {v}?"), lambda d: with_article(d.pick(words.PETS))),
    Attribute("food", ("{p} likes to eat {v}.", "{p}'s favorite food is {v}.", "{p} always orders {v}."),
              ("what does {p} like to eat?", "what is {p}'s favorite food?"), ("who likes to eat {v}?",),
              lambda d: d.pick(words.FOODS)),
    Attribute("hobby", ("{p}'s hobby is {v}.", "in the evening {p} goes in for {v}.", "{p} is very fond of {v}."),
              ("what is {p}'s hobby?", "which hobby does {p} have?"), ("whose hobby is {v}?",),
              lambda d: d.pick(words.HOBBIES)),
    Attribute("phone", ("{p}'s phone number is {v}.", "you can call {p} under {v}.", "{p} has the phone number {v}."),
              ("what is {p}'s phone number?", "under which number can I call {p}?", "how can I call {p}?"),
              ("whose phone number is {v}?",), lambda d: d.integer(1000, 999999)),
    Attribute("room", ("{p} sits in room {v}.", "{p}'s room is number {v}.", "you find {p} in room {v}."),
              ("in which room does {p} sit?", "what is {p}'s room number?", "where does {p} sit?"),
              ("who sits in room {v}?",),
              lambda d: d.integer(1, 499)),
    Attribute("year", ("{p} was born in {v}.", "{p}'s year of birth is {v}."),
              ("when was {p} born?", "in which year was {p} born?", "what is {p}'s year of birth?"),
              ("who was born in {v}?",),
              lambda d: d.integer(1900, 2020)),
)  # fmt: skip
THING = (
    Attribute("price", ("the {p} costs {v} euros.", "the price of the {p} is {v} euros.",
    "they sell the {p} for {v} euros."),
              ("how much does the {p} cost?", "what is the price of the {p}?", "what does the {p} cost?"),
              ("what costs {v} euros?",), lambda d: d.integer(1, 999)),
    Attribute("code", ("the code for the {p} is {v}.", "{v} is the code for the {p}.", "to open the {p}, type {v}."),
              ("what is the code for the {p}?", "which code does the {p} have?", "how can I open the {p}?"),
              ("what has the code {v}?",), lambda d: d.integer(1000, 9999)),
    Attribute("place", ("the {p} is in the {v}.", "you find the {p} in the {v}.", "they keep the {p} in the {v}."),
              ("where is the {p}?", "where do I find the {p}?", "in which room is the {p}?"),
              ("what is in the {v}?",),
              lambda d: d.pick(words.ROOMS)),
    Attribute("owner", ("the {p} belongs to {v}.", "{v} is the owner of the {p}.", "{v} bought the {p}."),
              ("who owns the {p}?", "whose is the {p}?", "who does the {p} belong to?"), ("what belongs to {v}?",),
              Draw.name),
    Attribute("paint", ("the {p} is {v}.", "somebody painted the {p} {v}.", "the color of the {p} is {v}."),
              ("what color is the {p}?", "which color does the {p} have?"), ("what is {v}?",),
              lambda d: d.pick(words.COLORS)),
)  # fmt: skip
FILLER = (
    "The weather was {c} that day.", "Nobody said a word.", "It was a {c} morning.", "There is a {w} on the table.",
    "The {w} is old.", "That is all there is to say about it.", "Some people saw a {w} near the {x}.",
    "It had been a long year.",
    "The meeting took place on {day}.", "Everybody was happy.", "A {w} and a {x} are not the same.",
    "Then it was {day} again.",
    "We met in {month}.", "More about this later.", "This was written in {month}.", "The {w} stood next to the {x}.",
)  # fmt: skip
FRAMES = (
    "{t}\n\n{q}", "Text: {t}\n\nQuestion: {q}", "Here is a text: {t}\n\n{q}", "Read this:\n{t}\n\n{q}", "{q}\n\n{t}",
    "{t} {q}",
    "Answer from the text.\n{t}\n{q}", "Context: {t}\nQuestion: {q}\nAnswer:", "Question: {q}\nText: {t}",
    "\"{t}\"\n{q}",
    "Use the following text to answer the question.\n\n{t}\n\n{q}", "Given this: {t}\n\nTell me: {q}",
)  # fmt: skip
SYSTEM_FRAMES = (
    "{t}",
    "Answer from these facts: {t}",
    "You know the following. {t}",
    "You are a helpful assistant. Facts: {t}",
)
MISSING = "The text does not say."


@dataclass(frozen=True, slots=True)
class Fact:
    """One thing said about one subject."""

    subject: str
    attribute: Attribute
    value: Value

    def sentence(self, d: Draw) -> str:
        """The fact as the text says it."""
        return capital(d.pick(self.attribute.sentences).format(p=self.subject, v=self.value))

    def answer(self) -> str:
        """The fact as the assistant says it."""
        return capital(self.attribute.sentences[0].format(p=self.subject, v=self.value))


def capital(text: str) -> str:
    """The sentence with a capital first letter."""
    return text[:1].upper() + text[1:]


def facts(d: Draw, most: int) -> list[Fact]:
    """Up to `most` facts, grouped by subject; no two with the same attribute have the same value."""
    kind, make = (PERSON, d.name) if d.chance(0.65) else (THING, d.word)
    per_subject = min(d.integer(1, 4), len(kind))
    found: dict[tuple[str, Value], Fact] = {}
    for subject in d.distinct(make, max(1, most // per_subject)):
        for attribute in d.some(kind, per_subject):
            value = attribute.value(d)
            found.setdefault((attribute.key, value), Fact(subject, attribute, value))
    return list(found.values())


def filler(d: Draw) -> str:
    """A sentence without any fact."""
    return d.pick(FILLER).format(
        c=d.pick(words.CONDITIONS), w=d.word(), x=d.word(), day=d.pick(words.DAYS), month=d.pick(words.MONTHS)
    )


def question(d: Draw, known: list[Fact]) -> tuple[str, str]:
    """A question about the facts and its answer; one in five has no answer in the text."""
    fact = d.pick(known)
    kind = d.rng.random()
    if kind < 0.2:
        pool = PERSON if fact.attribute in PERSON else THING
        said = {other.attribute.key for other in known if other.subject == fact.subject}
        missing = [attribute for attribute in pool if attribute.key not in said]
        return d.phrase(d.pick(missing).questions, p=fact.subject), MISSING
    if kind < 0.5 and len(known) <= 12:
        return d.phrase(fact.attribute.who, v=fact.value), fact.answer()
    return d.phrase(fact.attribute.questions, p=fact.subject), fact.answer()


def looked_up(d: Draw, most_facts: int, questions: int) -> Thread:
    """A text, and questions about it."""
    known = facts(d, most_facts)
    sentences = [fact.sentence(d) for fact in known]
    if d.chance(0.2):
        d.rng.shuffle(sentences)
    for _ in range(d.integer(0, 1 + len(sentences) // 3) if d.chance(0.7) else 0):
        sentences.insert(d.integer(0, len(sentences)), filler(d))
    text = d.pick((" ", " ", "\n")).join(sentences)
    asked = [question(d, known) for _ in range(questions)]
    in_system = d.chance(0.15)
    exchanges = [ask(q, a) for q, a in asked]
    if not in_system:
        exchanges[0] = ask(d.pick(FRAMES).format(t=text, q=asked[0][0]), asked[0][1])
    return Thread(tuple(exchanges), system=d.pick(SYSTEM_FRAMES).format(t=text) if in_system else None)


def lookup(d: Draw) -> Thread:
    """Looking up facts in a short text."""
    return looked_up(d, d.integer(1, 14), d.integer(1, 7))


def lookup_long(d: Draw) -> Thread:
    """Looking up facts in a text of 700 to 3,500 tokens."""
    return looked_up(d, d.integer(50, 240), d.integer(6, 16))


JSON_ASK = (
    "answer in JSON with {k}.", "reply in JSON with {k}.", "give me JSON with {k}.", "extract {k} as JSON.",
    "return JSON with {k}.",
    "write this as JSON with {k}.", "as JSON with {k}.", "respond only with JSON, using {k}.",
    "output JSON with {k}.",
)  # fmt: skip
JSON_KEYS = {
    "city": ("city", "home", "town"), "job": ("job", "profession", "occupation"), "age": ("age", "years"),
    "color": ("color", "favorite_color"), "pet": ("pet", "animal"), "food": ("food", "favorite_food"),
    "hobby": ("hobby",),
    "phone": ("phone", "phone_number"), "room": ("room", "room_number"), "year": ("year", "birth_year", "born"),
    "name": ("name", "person", "first_name"),
}  # fmt: skip
RESULT_KEYS = ("result", "answer", "sum", "value", "total", "output")


def to_json(value: object) -> str:
    """JSON on one line."""
    return json.dumps(value, ensure_ascii=False)


def named_keys(d: Draw, keys: list[str]) -> str:
    """The keys as people name them."""
    quote = d.pick(("", "", '"', "'"))
    shown = [f"{quote}{key}{quote}" for key in keys]
    listed = ", ".join(shown[:-1]) + d.pick((" and ", ", ")) + shown[-1] if len(shown) > 1 else shown[0]
    return d.pick(("the keys " if len(shown) > 1 else "the key ", "keys " if len(shown) > 1 else "key ")) + listed


def bare(value: Value) -> Value:
    """The value without an article."""
    return value.split(" ", 1)[1] if isinstance(value, str) and value.startswith(("a ", "an ")) else value


def json_extract(d: Draw) -> Thread:
    """Facts about one person out of a text, under the wanted keys in the wanted order."""
    person = d.name()
    known = [Fact(person, attribute, attribute.value(d)) for attribute in d.some(PERSON, d.integer(1, 5))]
    wanted: list[tuple[str, Value]] = [(d.pick(JSON_KEYS[f.attribute.key]), bare(f.value)) for f in known]
    wanted = d.some([(d.pick(JSON_KEYS["name"]), person), *wanted], d.integer(1, len(wanted) + 1))
    text = " ".join(fact.sentence(d) for fact in known)
    request = d.phrase(JSON_ASK, k=named_keys(d, [key for key, _ in wanted]))
    frame = d.pick(("{t}\n{q}", "{t} {q}", "{q}\n{t}", "{q} Text: {t}", "Text: {t}\n\n{q}"))
    return Thread((ask(frame.format(t=text, q=request), to_json(dict(wanted))),))


def json_result(d: Draw) -> Thread:
    """A sum or difference answered in JSON, or in plain words under a system prompt that wants JSON."""
    plus = d.chance(0.6)
    a, b = d.fresh("add" if plus else "subtract", lambda: (a := number(d), number(d) if plus else d.integer(0, a)))
    key = d.pick(RESULT_KEYS)
    calculation = f"{a} {'+' if plus else '-'} {b}"
    answer = to_json({key: a + b if plus else a - b})
    if d.chance(0.25):
        system = d.phrase(
            ("always answer in JSON with {k}.", "answer only in JSON with {k}.", "reply with JSON, using {k}."),
            k=named_keys(d, [key]),
        )
        return Thread(
            (ask(d.phrase(("what is {c}?", "{c}", "calculate {c}."), c=calculation), answer),), system=system, exclusive=True
        )
    request = d.phrase(JSON_ASK[:3] + JSON_ASK[4:5], k=named_keys(d, [key]))
    return Thread((ask(f"{d.pick(('What is', 'Calculate', 'How much is', ''))} {calculation}? {request}".lstrip(), answer),))


def json_list(d: Draw) -> Thread:
    """A list of words or numbers as a JSON array."""
    if d.chance(0.5):
        values: list[str] = d.distinct(d.word if d.chance(0.7) else d.name, d.integer(2, 6))
        shown, answer = ", ".join(values), to_json(values)
    else:
        numbers = d.fresh("json_list", lambda: tuple(d.integer(0, 999) for _ in range(d.integer(2, 7))))
        shown, answer = ", ".join(map(str, numbers)), to_json(list(numbers))
    asked = (
        "write {x} as a JSON array.",
        "{x} as a JSON list.",
        "make a JSON array of {x}.",
        "turn {x} into a JSON list.",
        "JSON array: {x}",
    )
    return Thread((ask(d.phrase(asked, x=shown), answer),))


def json_pairs(d: Draw) -> Thread:
    """Lines of key and value turned into a JSON object."""
    pairs: dict[str, Value] = {}
    for key in d.fresh("json_pairs", lambda: tuple(d.distinct(d.parameter, d.integer(2, 5)))):
        pairs[key] = d.integer(0, 999) if key in words.INTEGER_PARAMS else d.word()
    lines = d.pick(("\n", ", ")).join(f"{key}{d.pick((': ', ' = '))}{value}" for key, value in pairs.items())
    request = d.phrase(
        ("turn this into JSON:", "write this as JSON:", "convert to JSON:", "as a JSON object:", "make JSON out of this:")
    )
    return Thread((ask(f"{request}\n{lines}", to_json(pairs)),))


def as_json(d: Draw) -> Thread:
    """Answering in JSON."""
    return d.pick((json_extract, json_extract, json_result, json_result, json_list, json_pairs))(d)
