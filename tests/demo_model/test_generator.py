"""The demo model's generator: answers are right, and held-out arguments stay out of training."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from itertools import islice, pairwise

import pytest

from scripts.demo_model import generate, skills_numbers, skills_words, words
from scripts.demo_model.chat import Thread
from scripts.demo_model.draw import Draw, is_held_out
from scripts.demo_model.skills_text import MISSING, as_json, lookup
from scripts.demo_model.skills_tools import no_tool, tool_use

Skill = Callable[[Draw], Thread]


def exchanges(skill: Skill, count: int, held_out: bool = False) -> list[tuple[str, str]]:
    """Questions and answers of many threads."""
    d = Draw(random.Random(7), held_out)
    threads = [skill(d) for _ in range(count)]
    return [(e.messages[-2]["content"], e.messages[-1]["content"]) for thread in threads for e in thread.exchanges]


def numbers(text: str) -> list[int]:
    return [int(found) for found in re.findall(r"\d+", text)]


def calculated(equation: str) -> int:
    """The left side of `a + b`, by Python's own arithmetic."""
    left, sign, right = equation.split()
    return {"+": int.__add__, "-": int.__sub__, "x": int.__mul__}[sign](int(left), int(right))


@pytest.mark.parametrize(
    "skill",
    [skills_numbers.add, skills_numbers.subtract, skills_numbers.multiply, skills_numbers.table, skills_numbers.several],
)
@pytest.mark.parametrize("held_out", [False, True])
def test_equations_hold(skill: Skill, held_out: bool) -> None:
    for _, answer in exchanges(skill, 300, held_out):
        for line in answer.split("\n"):
            left, right = line.split(" = ")
            assert calculated(left) == int(right)


@pytest.mark.parametrize(
    "skill", [skills_numbers.add, skills_numbers.subtract, skills_numbers.multiply, skills_numbers.several]
)
def test_operands_come_from_the_question(skill: Skill) -> None:
    for question, answer in exchanges(skill, 300):
        operands = [n for line in answer.split("\n") for n in numbers(line.split(" = ")[0])]
        assert set(numbers(question)) <= set(operands)


def test_three_numbers_add_up() -> None:
    for question, answer in exchanges(skills_numbers.add_three, 200):
        assert int(answer.split(" = ")[-1]) == sum(numbers(question))


def test_counting_has_one_step_and_both_ends() -> None:
    for question, answer in exchanges(skills_numbers.count, 300):
        counted = numbers(answer)
        assert len({second - first for first, second in pairwise(counted)}) == 1
        assert counted[-1] in numbers(question)
        assert counted[0] in (*numbers(question), 1)


def test_sorted_numbers_are_those_of_the_question_in_order() -> None:
    for question, answer in exchanges(skills_numbers.sort_numbers, 300):
        given, told = numbers(question), numbers(answer)
        if len(told) == 1:
            assert told[0] in (min(given), max(given))
        else:
            assert told in (sorted(told), sorted(told, reverse=True))
            assert not given or sorted(given) == sorted(told)


def test_sorted_words_are_in_order() -> None:
    for question, answer in exchanges(skills_words.sort_words, 200):
        told = answer.split(", ")
        assert [word.lower() for word in told] == sorted(word.lower() for word in told)
        assert all(word in question for word in told)


def test_spelling_gives_the_letters_of_a_word_in_the_question() -> None:
    for question, answer in exchanges(skills_words.spell, 400):
        forwards = answer.split(",")[0].split(":")[0].replace("-", "")
        assert forwards in question or "how many letters" in question.lower()
        if "backwards: " in answer:
            assert answer.split("backwards: ")[1].replace("-", "") == forwards[::-1]
        if answer.endswith(" letters"):
            assert numbers(answer) == [len(forwards)]


@pytest.mark.parametrize(("skill", "cycle"), [(skills_words.days, words.DAYS), (skills_words.months, words.MONTHS)])
def test_the_calendar_is_right(skill: Skill, cycle: tuple[str, ...]) -> None:
    for _, answer in exchanges(skill, 300):
        steps = re.search(r"(\d+) \w+ (after|before) (\w+) is (\w+)\.", answer)
        if steps:
            away = int(steps[1]) if steps[2] == "after" else -int(steps[1])
            assert cycle[(cycle.index(steps[3]) + away) % len(cycle)] == steps[4]
        next_to = re.match(r"The \w+ (after|before) (\w+) is (\w+)\.", answer)
        if next_to:
            assert (cycle.index(next_to[2]) + (1 if next_to[1] == "after" else -1)) % len(cycle) == cycle.index(next_to[3])


def test_looked_up_values_stand_in_the_text() -> None:
    d = Draw(random.Random(3))
    for _ in range(200):
        thread = lookup(d)
        text = (thread.system or "") + str(thread.exchanges[0].messages[0]["content"])
        for exchange in thread.exchanges:
            if exchange.accepted[0] != MISSING:
                subject_and_value = re.findall(r"[A-Z]?[a-z]*\d+|[A-Z][a-z]+", exchange.accepted[0].removeprefix("The "))
                assert all(word in text for word in subject_and_value)


def test_json_answers_parse() -> None:
    for _, answer in exchanges(as_json, 300):
        json.loads(answer)


def test_calls_fit_a_given_tool() -> None:
    d = Draw(random.Random(5))
    for _ in range(200):
        thread = tool_use(d)
        tools = {tool["function"]["name"]: tool["function"]["parameters"] for tool in thread.tools}
        assert len(tools) == len(thread.tools)
        for call in thread.exchanges[0].messages[-1]["tool_calls"]:
            parameters, arguments = tools[call["function"]["name"]], call["function"]["arguments"]
            assert set(parameters["required"]) <= set(arguments) <= set(parameters["properties"])
            kinds = {"integer": int, "number": int, "boolean": bool, "string": str}
            assert all(isinstance(value, kinds[parameters["properties"][key]["type"]]) for key, value in arguments.items())


def test_nothing_is_called_where_no_tool_fits() -> None:
    d = Draw(random.Random(5))
    assert all("tool_calls" not in no_tool(d).exchanges[-1].messages[-1] for _ in range(100))


def test_the_split_is_disjoint() -> None:
    drawn: dict[bool, set[tuple[str, object]]] = {}
    for held_out in (False, True):
        d = Draw(random.Random(1), held_out)
        kinds: dict[str, Callable[[], str]] = {"name": d.name, "word": d.word, "city": d.city}
        drawn[held_out] = {(kind, make()) for kind, make in kinds.items() for _ in range(500)}
        assert all(is_held_out(kind, argument) == held_out for kind, argument in drawn[held_out])
    assert not drawn[False] & drawn[True]


def test_the_split_is_a_sixteenth() -> None:
    held_out = sum(is_held_out("add", (a, b)) for a in range(100) for b in range(100))
    assert 500 < held_out < 750


def test_a_held_out_product_has_its_mirror_in_training() -> None:
    d = Draw(random.Random(2), held_out=True)
    for _ in range(100):
        a, b = skills_numbers.product_pair(d)
        assert not skills_numbers.is_held_out_product(b, a)


def test_held_out_sums_are_in_no_training_conversation() -> None:
    for text in islice(generate.conversations("test", generate.SHORT_CHARS), 400):
        for a, b in re.findall(r"assistant\n(\d+) \+ (\d+) = \d+<", text):
            assert not is_held_out("add", (int(a), int(b)))


def test_the_same_seed_gives_the_same_conversations() -> None:
    first, second = (list(islice(generate.conversations("a", generate.SHORT_CHARS), 20)) for _ in range(2))
    assert first == second


@pytest.mark.parametrize("name", list(generate.EVALUATIONS))
def test_evaluation_samples_differ_and_wait_for_an_answer(name: str) -> None:
    samples = generate.evaluation(name, 20, "test")
    assert len({str(sample) for sample in samples}) == 20
    assert all(sample.messages[-1]["role"] in ("user", "tool") and sample.accepted for sample in samples)
