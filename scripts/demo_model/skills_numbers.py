"""Skills with numbers: adding, subtracting, multiplying, counting, sorting, and several of them in one question."""

from __future__ import annotations

from . import words
from .chat import Exchange, Thread, ask
from .draw import Draw, is_held_out

ADD = (
    "what is {a} + {b}?", "{a}+{b}", "{a} + {b}", "{a} + {b} =", "{a}+{b}=?", "what is {a} plus {b}?",
    "add {a} and {b}.",
    "how much is {a}+{b}?", "calculate {a} + {b}.", "what's {a} plus {b}?", "the sum of {a} and {b}?",
    "compute {a}+{b}.",
    "can you add {a} and {b}?", "{a} plus {b}", "what do you get when you add {a} to {b}?",
    "what is the sum of {a} and {b}?",
    "how much do {a} and {b} make?", "please add {a} and {b}.", "what is {a}+{b}?", "tell me {a} + {b}.",
    "{a} and {b} together?",
)  # fmt: skip
SUBTRACT = (
    "what is {a} - {b}?", "{a}-{b}", "{a} - {b}", "{a} - {b} =", "{a}-{b}=?", "what is {a} minus {b}?",
    "subtract {b} from {a}.",
    "how much is {a}-{b}?", "calculate {a} - {b}.", "what's {a} minus {b}?", "take {b} away from {a}.",
    "compute {a}-{b}.",
    "can you subtract {b} from {a}?", "{a} minus {b}", "the difference of {a} and {b}?", "what is {a} less {b}?",
    "what is left of {a} after taking away {b}?", "please subtract {b} from {a}.", "what is {a}-{b}?",
    "tell me {a} - {b}.",
)  # fmt: skip
MULTIPLY = (
    "what is {a} x {b}?", "{a}x{b}", "{a} * {b}", "{a} * {b} =", "{a}*{b}=?", "what is {a} times {b}?",
    "multiply {a} by {b}.",
    "how much is {a}*{b}?", "calculate {a} x {b}.", "what's {a} times {b}?", "the product of {a} and {b}?",
    "compute {a}*{b}.",
    "can you multiply {a} and {b}?", "{a} times {b}", "what is {a} multiplied by {b}?", "multiply {a} and {b}.",
    "{a} x {b}",
)  # fmt: skip
TABLE = (
    "the times table of {n} from {low} to {high}.", "say the {n} times table from {low} to {high}.",
    "write the multiplication table of {n}, from {low} to {high}.", "multiplication table for {n}, {low} to {high}?",
    "what is the table of {n} from {low} to {high}?",
)  # fmt: skip
TABLE_TO_TEN = (
    "the times table of {n}.",
    "say the {n} times table.",
    "multiplication table for {n}?",
    "what is the table of {n}?",
)
COUNT_UP = (
    "count from {a} to {b}.", "count up from {a} to {b}.", "can you count from {a} to {b}?",
    "please count from {a} to {b}.",
    "count {a} to {b}", "say the numbers from {a} to {b}.", "list the numbers from {a} to {b}.",
    "numbers from {a} to {b}?",
)  # fmt: skip
COUNT_TO = (
    "count to {b}.",
    "can you count to {b}?",
    "please count to {b}.",
    "count up to {b}.",
    "could you count to {b} for me?",
)
COUNT_DOWN = (
    "count down from {a} to {b}.", "count backwards from {a} to {b}.", "count from {a} down to {b}.",
    "count from {a} to {b}.",
    "can you count down from {a} to {b}?",
)  # fmt: skip
COUNT_STEP = ("count from {a} to {b} by {s}s.", "count from {a} to {b} in steps of {s}.", "count by {s} from {a} to {b}.")
SORT_UP = (
    "sort these numbers: {x}", "sort {x}", "sort {x} in ascending order.", "put these numbers in order: {x}.",
    "order {x}",
    "arrange {x} from smallest to largest.", "sort the numbers {x}.", "can you sort {x}?", "please sort: {x}",
    "sort from low to high: {x}", "sort the list {x}", "order these from smallest to biggest: {x}.",
)  # fmt: skip
SORT_DOWN = (
    "sort {x} in descending order.", "arrange {x} from largest to smallest.", "sort from high to low: {x}",
    "order these from biggest to smallest: {x}.", "sort these numbers in descending order: {x}",
    "sort {x} descending.",
)  # fmt: skip
LARGEST = (
    "which is the largest of {x}?",
    "what is the biggest number: {x}?",
    "the largest of {x}?",
    "find the maximum of {x}.",
)
SMALLEST = (
    "which is the smallest of {x}?",
    "what is the smallest number: {x}?",
    "the smallest of {x}?",
    "find the minimum of {x}.",
)
ADD_MORE = ("add {b} to that.", "plus {b}?", "and plus {b}?", "now add {b}.", "and {b} more?", "add {b} more.", "+ {b}", "+{b}")
TAKE_MORE = ("subtract {b} from that.", "minus {b}?", "and minus {b}?", "now subtract {b}.", "take away {b}.", "- {b}", "-{b}")
REVERSED = (
    "and now in descending order.",
    "now the other way round.",
    "reverse that.",
    "and backwards?",
    "now from high to low.",
)
BOTH = (
    "{first} and {second}?", "what is {first} and {second}?", "{first}, and then {second}?",
    "what is {first}, and what is {second}?",
    "{first} and then {second}", "calculate {first} and {second}.", "first {first}, then {second}.",
    "{first}; {second}",
)  # fmt: skip
THREE = ("{first}, {second} and {third}?", "calculate {first}, {second} and {third}.", "what is {first}, {second} and {third}?")


def number(d: Draw) -> int:
    """A number of one to three digits; each length is common."""
    return d.integer(0, d.pick((9, 20, 99, 99, 999, 999, 999)))


def add_answer(a: int, b: int) -> str:
    """The answer to a + b."""
    return f"{a} + {b} = {a + b}"


def subtract_answer(a: int, b: int) -> str:
    """The answer to a - b."""
    return f"{a} - {b} = {a - b}"


def add(d: Draw) -> Thread:
    """Adding two numbers of up to three digits, with a follow-up that goes on from the sum."""
    a, b = d.fresh("add", lambda: (number(d), number(d)))
    if a <= 12 and b <= 12 and d.chance(0.3):
        first = ask(d.phrase(ADD[5:11], a=words.NUMBER_WORDS[a], b=words.NUMBER_WORDS[b]), add_answer(a, b))
    else:
        first = ask(d.phrase(ADD, a=a, b=b), add_answer(a, b))
    return Thread((first, *go_on(d, a + b)))


def go_on(d: Draw, total: int) -> tuple[Exchange, ...]:
    """Now and then a follow-up that adds to the result or subtracts from it."""
    if not 0 <= total <= 999 or not d.chance(0.3):
        return ()
    if d.chance(0.6):
        _, b = d.fresh("add", lambda: (total, number(d)))
        return (ask(d.phrase(ADD_MORE, b=b), add_answer(total, b)),)
    _, b = d.fresh("subtract", lambda: (total, number(d)))
    return (ask(d.phrase(TAKE_MORE, b=b), subtract_answer(total, b)),)


def add_three(d: Draw) -> Thread:
    """Adding three numbers in two steps."""
    a, b, c = d.fresh("add_three", lambda: (d.integer(0, 200), d.integer(0, 200), d.integer(0, 200)))
    question = d.phrase(
        ("what is {a} + {b} + {c}?", "{a}+{b}+{c}", "add {a}, {b} and {c}.", "the sum of {a}, {b} and {c}?"), a=a, b=b, c=c
    )
    return Thread((ask(question, f"{a} + {b} + {c} = {a + b} + {c} = {a + b + c}"),))


def subtract(d: Draw) -> Thread:
    """Subtracting numbers of up to three digits; a fifth of the results are negative."""

    def make() -> tuple[int, int]:
        a, b = number(d), number(d)
        return (a, b) if a >= b or d.chance(0.25) else (b, a)

    a, b = d.fresh("subtract", make)
    return Thread((ask(d.phrase(SUBTRACT, a=a, b=b), subtract_answer(a, b)), *go_on(d, a - b)))


def multiply(d: Draw) -> Thread:
    """A product out of the times tables up to 12."""
    a, b = product_pair(d)
    return Thread((ask(d.phrase(MULTIPLY, a=a, b=b), f"{a} x {b} = {a * b}"),))


def is_held_out_product(a: int, b: int) -> bool:
    """Whether a x b is never asked in training. Its mirror always is: tables are learned by heart, not worked out."""
    return a > b and is_held_out("multiply", (a, b))


def product_pair(d: Draw) -> tuple[int, int]:
    """A pair of factors up to 12."""
    while True:
        a, b = d.integer(0, 12), d.integer(0, 12)
        if is_held_out_product(a, b) == d.held_out:
            return a, b


def table(d: Draw) -> Thread:
    """A stretch of a times table."""
    n, low, high = d.fresh("table", lambda: (d.integer(1, 12), low := d.integer(1, 10), min(12, low + d.integer(2, 9))))
    text = d.phrase(TABLE_TO_TEN if (low, high) == (1, 10) and d.chance(0.5) else TABLE, n=n, low=low, high=high)
    return Thread((ask(text, "\n".join(f"{n} x {i} = {n * i}" for i in range(low, high + 1))),))


def counted(start: int, stop: int, step: int) -> str:
    """The numbers from start to stop, both included."""
    return ", ".join(str(i) for i in range(start, stop + (1 if step > 0 else -1), step))


def count(d: Draw) -> Thread:
    """Counting up, down and in steps."""
    kind = d.rng.random()
    if kind < 0.25:
        stop = d.fresh("count_to", lambda: d.integer(2, 100))
        return Thread((ask(d.phrase(COUNT_TO, b=stop), counted(1, stop, 1)),))
    if kind < 0.6:
        a, b = d.fresh("count", lambda: (low := d.integer(0, d.pick((10, 99, 400))), low + d.integer(2, 30)))
        return Thread((ask(d.phrase(COUNT_UP, a=a, b=b), counted(a, b, 1)),))
    if kind < 0.85:
        a, b = d.fresh("count_down", lambda: (high := d.integer(3, d.pick((12, 99, 400))), max(0, high - d.integer(2, 30))))
        return Thread((ask(d.phrase(COUNT_DOWN, a=a, b=b), counted(a, b, -1)),))
    s = d.pick((2, 3, 5, 10))
    a, b = d.fresh("count_step", lambda: (low := d.integer(0, 10) * s, low + s * d.integer(2, 12)))
    return Thread((ask(d.phrase(COUNT_STEP, a=a, b=b, s=s), counted(a, b, s)),))


def listed(d: Draw, values: list[str]) -> str:
    """The values as people type lists."""
    separator = d.pick((", ", ", ", ", ", ",", " "))
    if separator == ", " and d.chance(0.3):
        return ", ".join(values[:-1]) + " and " + values[-1]
    return f"[{separator.join(values)}]" if separator != " " and d.chance(0.1) else separator.join(values)


def sort_numbers(d: Draw) -> Thread:
    """Sorting 2 to 9 different numbers, or naming the largest or smallest."""

    def make() -> tuple[int, ...]:
        high = d.pick((20, 99, 99, 999))
        return tuple(d.rng.sample(range(high + 1), d.integer(2, 9)))

    values = d.fresh("sort_numbers", make)
    shown = listed(d, [str(value) for value in values])
    kind = d.rng.random()
    if kind < 0.15:
        return Thread((ask(d.phrase(LARGEST, x=shown), f"{max(values)}"),))
    if kind < 0.3:
        return Thread((ask(d.phrase(SMALLEST, x=shown), f"{min(values)}"),))
    up = ", ".join(str(value) for value in sorted(values))
    down = ", ".join(str(value) for value in sorted(values, reverse=True))
    if kind < 0.45:
        return Thread((ask(d.phrase(SORT_DOWN, x=shown), down),))
    first = ask(d.phrase(SORT_UP, x=shown), up)
    return Thread((first, ask(d.phrase(REVERSED), down)) if d.chance(0.2) else (first,))


def term(d: Draw) -> tuple[str, str]:
    """A sum, difference or product as it is typed, and its answer."""
    kind = d.rng.random()
    space = " " if d.chance(0.5) else ""
    if kind < 0.4:
        a, b = d.fresh("add", lambda: (number(d), number(d)))
        return d.pick((f"{a}{space}+{space}{b}", f"{a} plus {b}")), add_answer(a, b)
    if kind < 0.8:
        a, b = d.fresh("subtract", lambda: (a := number(d), d.integer(0, a)))
        return d.pick((f"{a}{space}-{space}{b}", f"{a} minus {b}")), subtract_answer(a, b)
    a, b = product_pair(d)
    return d.pick((f"{a}{space}*{space}{b}", f"{a} times {b}")), f"{a} x {b} = {a * b}"


def several(d: Draw) -> Thread:
    """Two or three calculations in one question; the answer has a line for each."""
    terms = [term(d) for _ in range(d.pick((2, 2, 3)))]
    asked = dict(zip(("first", "second", "third"), (text for text, _ in terms), strict=False))
    question = d.phrase(BOTH if len(terms) == 2 else THREE, **asked)
    return Thread((ask(question, "\n".join(answer for _, answer in terms)),))
