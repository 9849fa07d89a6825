"""Skills with words: spelling, sorting words, days and months."""

from __future__ import annotations

from . import words
from .chat import Thread, ask
from .draw import Draw
from .skills_numbers import listed
from .words import DAYS, MONTH_LENGTHS, MONTHS

OURS = ("Penstock", "penstock", "OpenAI", "API", "JSON", "server", "strawberry")
SPELL = (
    "spell {w}.", "spell the word {w}.", "how do you spell {w}?", "can you spell {w}?", "please spell {w}.",
    "spell: {w}",
    "spell out {w}.", "what are the letters of {w}?", "spell '{w}'.", "spell \"{w}\"", "how is {w} spelled?",
    "{w}: spell it.",
)  # fmt: skip
SPELL_NAME = ("spell the name {w}.", "how do you spell the name {w}?", "spell my name, {w}.", "my name is {w}. spell it.")
LETTERS = (
    "how many letters does {w} have?", "how many letters are in {w}?", "how long is the word {w}?",
    "count the letters of {w}.",
    "how many letters are there in the word {w}?",
)  # fmt: skip
BACKWARDS = ("spell {w} backwards.", "write {w} backwards.", "reverse the word {w}.", "what is {w} backwards?")
FIRST_LETTER = ("what is the first letter of {w}?", "which letter does {w} start with?", "first letter of {w}?")
LAST_LETTER = ("what is the last letter of {w}?", "which letter does {w} end with?", "last letter of {w}?")
SORT_WORDS = (
    "sort these words: {x}", "sort {x} alphabetically.", "put these words in alphabetical order: {x}.",
    "alphabetical order of {x}?",
    "sort the words {x}.", "can you sort {x} from a to z?", "please sort alphabetically: {x}",
    "order these words: {x}",
)  # fmt: skip
AFTER = ("what {unit} comes after {x}?", "which {unit} follows {x}?", "what is the {unit} after {x}?", "{unit} after {x}?")
BEFORE = (
    "what {unit} comes before {x}?",
    "what is the {unit} before {x}?",
    "{unit} before {x}?",
    "which {unit} is right before {x}?",
)
STEPS_AFTER = (
    "what {unit} is {n} {unit}s after {x}?", "which {unit} comes {n} {unit}s after {x}?", "{n} {unit}s after {x}?",
    "what is {x} plus {n} {unit}s?", "if it is {x}, what {unit} is it in {n} {unit}s?",
)  # fmt: skip
STEPS_BEFORE = (
    "what {unit} is {n} {unit}s before {x}?", "which {unit} comes {n} {unit}s before {x}?", "{n} {unit}s before {x}?",
    "if it is {x}, what {unit} was it {n} {unit}s ago?",
)  # fmt: skip
LIST_DAYS = (
    "list the days of the week.",
    "what are the days of the week?",
    "name all days of the week.",
    "which days are there?",
)
LIST_MONTHS = (
    "list the months.",
    "what are the months of the year?",
    "name all months of the year.",
    "which months are there?",
)
FROM_TO = ("list the {unit}s from {x} to {y}.", "name the {unit}s from {x} to {y}.", "say the {unit}s from {x} to {y}.")
MONTH_NUMBER = (
    "which month of the year is {x}?",
    "what number is the month {x}?",
    "which number does {x} have among the months?",
)
NUMBER_MONTH = ("what is month {n}?", "which month is number {n}?", "what is month number {n} called?", "name month {n}.")
MONTH_DAYS = ("how many days does {x} have?", "how many days are in {x}?", "how long is {x}?", "number of days in {x}?")
NEXT = ("and the {unit} after that?", "and after that?", "and then?", "what comes next?", "and the next {unit}?")


def spelled(word: str) -> str:
    """The letters of a word, joined by hyphens."""
    return "-".join(word)


def spell_word(d: Draw) -> str:
    """A word to spell: lower case mostly, at times capitalised, in capitals or without any sense."""
    kind = d.rng.random()
    if kind < 0.03 and not d.held_out:
        return str(d.pick(OURS))  # what people try first, so held out by nobody's luck
    if kind < 0.12:
        return str(d.fresh("word", lambda: d.pick(words.PARTS)))
    if kind < 0.2:
        return d.fresh("word", lambda: "".join(d.pick("abcdefghijklmnopqrstuvwxyz") for _ in range(d.integer(3, 8))))
    word: str = d.word()
    return word.capitalize() if kind < 0.32 else word.upper() if kind < 0.37 else word


def spell(d: Draw) -> Thread:
    """Spelling a word or a name, forwards and backwards, counting its letters."""
    kind = d.rng.random()
    if kind < 0.2:
        word = d.name()
        return Thread((ask(d.phrase(SPELL_NAME, w=word), spelled(word)),))
    word = d.name() if kind < 0.3 else spell_word(d)
    if kind < 0.65:
        first = ask(d.phrase(SPELL, w=word), spelled(word))
        more = ask(d.phrase(("how many letters is that?", "how many letters?")), letters_answer(word))
        return Thread((first, more) if d.chance(0.2) else (first,))
    if kind < 0.8:
        return Thread((ask(d.phrase(LETTERS, w=word), letters_answer(word)),))
    if kind < 0.9:
        return Thread((ask(d.phrase(BACKWARDS, w=word), f"{spelled(word)}, backwards: {spelled(word[::-1])}"),))
    if kind < 0.95:
        return Thread((ask(d.phrase(FIRST_LETTER, w=word), word[0]),))
    return Thread((ask(d.phrase(LAST_LETTER, w=word), word[-1]),))


def letters_answer(word: str) -> str:
    """The answer to how many letters a word has."""
    return f"{spelled(word)}: {len(word)} letters"


def sort_words(d: Draw) -> Thread:
    """Sorting 2 to 7 words or names with different first letters."""
    make = d.name if d.chance(0.3) else d.word
    by_letter: dict[str, str] = {}
    for word in d.distinct(make, d.integer(3, 9)):
        by_letter.setdefault(word[0].lower(), word)
    values = d.some(list(by_letter.values()), min(len(by_letter), 7))
    answer = ", ".join(sorted(values, key=str.lower))
    return Thread((ask(d.phrase(SORT_WORDS, x=listed(d, values)), answer),))


def stepped(cycle: tuple[str, ...], start: int, steps: int) -> list[str]:
    """The names one meets on the way from start, itself left out."""
    direction = 1 if steps > 0 else -1
    return [cycle[(start + direction * i) % len(cycle)] for i in range(1, abs(steps) + 1)]


def calendar(d: Draw, cycle: tuple[str, ...], unit: str, most_steps: int) -> Thread:
    """What comes after, before, some steps away, and which lie between."""
    x = d.integer(0, len(cycle) - 1)
    kind = d.rng.random() if not d.held_out else 0.35 + 0.65 * d.rng.random()  # neighbours are facts, all in training
    if kind < 0.2:
        y = (x + 1) % len(cycle)
        first = ask(d.phrase(AFTER, unit=unit, x=cycle[x]), f"The {unit} after {cycle[x]} is {cycle[y]}.")
        more = ask(d.phrase(NEXT, unit=unit), f"The {unit} after {cycle[y]} is {cycle[(y + 1) % len(cycle)]}.")
        return Thread((first, more) if d.chance(0.3) else (first,))
    if kind < 0.35:
        return Thread((ask(d.phrase(BEFORE, unit=unit, x=cycle[x]), f"The {unit} before {cycle[x]} is {cycle[x - 1]}."),))
    if kind < 0.85:
        way = d.pick(("after", "before"))
        x, n = d.fresh(f"{unit}s {way}", lambda: (d.integer(0, len(cycle) - 1), d.integer(2, most_steps)))
        passed = stepped(cycle, x, n if way == "after" else -n)
        question = d.phrase(STEPS_AFTER if way == "after" else STEPS_BEFORE, unit=unit, x=cycle[x], n=n)
        return Thread((ask(question, f"{', '.join(passed)}: {n} {unit}s {way} {cycle[x]} is {passed[-1]}."),))
    x, n = d.fresh(f"{unit}s between", lambda: (d.integer(0, len(cycle) - 1), d.integer(1, len(cycle) - 1)))
    span = [cycle[x], *stepped(cycle, x, n)]
    return Thread((ask(d.phrase(FROM_TO, unit=unit, x=span[0], y=span[-1]), ", ".join(span)),))


def days(d: Draw) -> Thread:
    """Days of the week."""
    if not d.held_out and d.chance(0.1):
        return Thread((ask(d.phrase(LIST_DAYS), ", ".join(DAYS)),))
    return calendar(d, DAYS, "day", 10)


def months(d: Draw) -> Thread:
    """Months, their numbers and lengths."""
    kind = d.rng.random() if not d.held_out else 1.0  # the first four kinds are facts, all in training
    i = d.integer(0, 11)
    if kind < 0.08:
        return Thread((ask(d.phrase(LIST_MONTHS), ", ".join(MONTHS)),))
    if kind < 0.15:
        return Thread((ask(d.phrase(MONTH_NUMBER, x=MONTHS[i]), f"{MONTHS[i]} is month {i + 1}."),))
    if kind < 0.22:
        return Thread((ask(d.phrase(NUMBER_MONTH, n=i + 1), f"Month {i + 1} is {MONTHS[i]}."),))
    if kind < 0.32:
        length = "28 days, and 29 in a leap year" if i == 1 else f"{MONTH_LENGTHS[i]} days"
        return Thread((ask(d.phrase(MONTH_DAYS, x=MONTHS[i]), f"{MONTHS[i]} has {length}."),))
    return calendar(d, MONTHS, "month", 11)
