"""Lengths, prompts and the shared list: the same work for the same seed, and nothing twice."""

from __future__ import annotations

import itertools
import json
import os
import statistics
import subprocess
import sys

import pytest

from penstock.bench import lengths, work_list
from penstock.bench.prompts import Prompts
from penstock.bench.settings import BenchError, Work, api_url

MANY = 2000


def test_sharegpt_lengths_have_the_means_they_are_known_for() -> None:
    pairs = lengths.draw("sharegpt", MANY, 0)
    assert statistics.mean(prompt for prompt, _ in pairs) == pytest.approx(220, rel=0.05)
    assert statistics.mean(output for _, output in pairs) == pytest.approx(205, rel=0.05)
    assert all(4 <= length <= 1024 for pair in pairs for length in pair)


def test_the_same_seed_gives_the_same_lengths_and_another_seed_others() -> None:
    assert lengths.draw("sharegpt", 5, 1) == lengths.draw("sharegpt", 10, 1)[:5]
    assert lengths.draw("sharegpt", 5, 1) != lengths.draw("sharegpt", 5, 2)


@pytest.mark.parametrize(
    ("name", "prompts", "outputs"),
    [
        ("12x34", {12}, {34}),
        ("prefill", {1024}, {128}),
        ("single", {128}, {512}),
        ("agents", {300}, {150}),
        ("3-5x7", {3, 4, 5}, {7}),
        ("7x1-2", {7}, {1, 2}),
        ("uniform", set(range(100, 1025)), set(range(100, 1025))),
    ],
)
def test_named_lengths_and_ranges(name: str, prompts: set[int], outputs: set[int]) -> None:
    pairs = lengths.draw(name, 20000, 0)
    assert {prompt for prompt, _ in pairs} == prompts
    assert {output for _, output in pairs} == outputs


@pytest.mark.parametrize("name", ["", "shargpt", "10", "0x5", "5x0", "9-3x5", "axb", "-1x5"])
def test_lengths_that_are_none_are_refused(name: str) -> None:
    with pytest.raises(BenchError, match="x"):
        lengths.check(name)


def test_prompts_of_token_ids_share_their_prefix_and_no_more() -> None:
    work = Work(lengths="10x1", num_prompts=2, shared_prefix_tokens=7, vocab_size=1000)
    first, second = (json.loads(Prompts(work).token_ids(index, 10)) for index in (0, 1))
    assert len(first) == len(second) == 17
    assert first[:7] == second[:7]
    assert first[7:] != second[7:]
    assert all(256 <= token_id < 1000 for token_id in first + second)
    assert first == json.loads(Prompts(work).token_ids(0, 10))


def test_texts_have_as_many_words_as_make_the_tokens() -> None:
    prompts = Prompts(Work(lengths="10x1", num_prompts=1, shared_prefix_tokens=20, vocab_size=1000, tokens_per_word=2.0))
    assert len(prompts.text(0, 0, 100).split()) == 50
    assert len(prompts.system_text.split()) == 10
    assert prompts.text(0, 0, 100) != prompts.text(0, 1, 100)


def test_processes_take_each_number_once() -> None:
    code = "import sys; from penstock.bench.work_list import take\nwhile (n := take(int(sys.argv[1]))) is not None: print(n)"
    with work_list.make_list(3000) as file:
        takers = [
            subprocess.Popen(
                [sys.executable, "-c", code, str(file.fileno())], stdout=subprocess.PIPE, pass_fds=(file.fileno(),)
            )
            for _ in range(3)
        ]
        taken = [int(number) for taker in takers for number in taker.communicate(timeout=60)[0].split()]
        assert work_list.take(file.fileno()) is None
    assert sorted(taken) == list(range(3000))


def test_arrivals_come_at_the_asked_rate_and_not_evenly() -> None:
    times = work_list.arrival_times_s(MANY, 50.0, 0)
    assert times == sorted(times)
    assert times[-1] == pytest.approx(MANY / 50.0, rel=0.1)
    gaps = [after - before for before, after in itertools.pairwise(times)]
    assert statistics.stdev(gaps) == pytest.approx(1 / 50.0, rel=0.15)


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ("127.0.0.1:8000", "http://127.0.0.1:8000/v1"),
        ("http://host", "http://host/v1"),
        ("http://host/v1/", "http://host/v1"),
        ("https://host/api/v1", "https://host/api/v1"),
        ("https://host/api/", "https://host/api/v1"),
    ],
)
def test_an_address_may_have_v1_or_not(given: str, url: str) -> None:
    assert api_url(given) == url


@pytest.mark.parametrize("given", ["", "ftp://host", "http://", "http://host:none", "http://a..b", "http://host?x=1"])
def test_an_address_that_is_none_is_refused(given: str) -> None:
    with pytest.raises(BenchError, match="is not an address"):
        api_url(given)


def test_a_client_process_imports_nothing_heavy() -> None:
    code = "import sys, penstock.bench.worker; print({'numpy', 'torch', 'fastapi', 'pydantic'} & set(sys.modules))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=dict(os.environ))
    assert said.stdout == "set()\n"
