"""Ready programs: answers that can be checked, unit tests in a process with limits, rewards as one."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import time

import numpy as np
import pytest

import nemo_rpo.judging
import nemo_rpo.sampling
from nemo_rpo.errors import DataError
from nemo_rpo.judging.programs.answers import exact_answer
from nemo_rpo.judging.programs.unit_tests import pass_rate
from nemo_rpo.judging.rewards import all_good, good_enough, harmonic, log_sigmoid_reward

_MODULES = [
    module.name
    for package in (nemo_rpo.judging, nemo_rpo.sampling)
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
]


@pytest.mark.parametrize("module", [*_MODULES, "nemo_rpo.data.files.stage"])
def test_doctests(module):
    assert doctest.testmod(importlib.import_module(module)).failed == 0


@pytest.mark.parametrize(
    ("response", "answer", "right"),
    [
        ("First 3, then \\boxed{1,200}", "1200", 1),
        ("It is $5.", "5", 1),
        ("It is 5. Or 6", "5", 0),
        ("So the capital is\nParis", "PARIS.", 1),
        ("", "5", 0),
        ("no number", "5", 0),
    ],
)
def test_exact_answers(response, answer, right):
    assert exact_answer("", response, {"answer": answer}) == right


CODE = "```python\ndef f(x):\n    return x + 1\n```"
TESTS = ["assert f(1) == 2", "assert f(2) == 3", "assert f(3) == 0", "assert f('x')"]


@pytest.mark.parametrize(
    ("response", "tests", "rate"),
    [
        (CODE, TESTS, 0.5),
        (CODE, "assert f(1) == 2\nassert f(2) == 3", 1.0),
        ("```\nthis is no code\n```", TESTS, 0.0),
        ("def f(x): raise SystemExit(0)", TESTS, 0.0),
        ("def f(x):\n    while True: pass", TESTS[:1], 0.0),
        ("def f(x):\n    try:\n        while True: pass\n    except Exception: return 2", TESTS[:1], 0.0),
        ("def f(x): return len(bytearray(1 << 34)) and 2", TESTS[:1], 0.0),
        ("import os\ndef f(x):\n    if x > 1: os._exit(0)\n    return x + 1", TESTS, 0.25),
        ("import os, signal\ndef f(x):\n    if x > 1: os.kill(os.getpid(), signal.SIGKILL)\n    return 2", TESTS, 0.25),
        ("print('1\\n' * 10)\ndef f(x): return 0", TESTS[:2], 0.0),
        ("import sys\nsys.exit = print\nn = 0\ndef f(x):\n    global n\n    n += 1\n    return x + n", TESTS[:2], 1.0),
        (CODE, [], None),
    ],
)
def test_unit_tests(response, tests, rate):
    """Loops, memory, exits and kills cost the tests they meet and no others; a test has the code to itself."""
    start = time.monotonic()
    assert pass_rate("", response, {"tests": tests}, seconds=0.3) == rate
    assert time.monotonic() - start < 30


def test_what_code_starts_ends_with_it(tmp_path):
    mark = tmp_path / "mark"
    child = f"import time; time.sleep(0.5); open({str(mark)!r}, 'w')"
    code = f"import subprocess, sys\nsubprocess.Popen([sys.executable, '-c', {child!r}])"
    assert pass_rate("", code, {"tests": ["pass"]}) == 1.0
    time.sleep(0.8)
    assert not mark.exists()


def test_rewards_as_one():
    """A constant on all rewards of a prompt changes nothing; one bad reward is not made up for; one reward ranks as it
    did; the value of the literature at its reference."""
    draw = np.random.default_rng(0)
    rewards = draw.normal(size=(2, 50))
    references = [good_enough(row) for row in rewards]
    value = all_good(rewards, references)
    shifted = rewards + np.array([[3.0], [-5.0]])
    assert np.allclose(all_good(shifted, [good_enough(row) for row in shifted]), value)
    one = log_sigmoid_reward(rewards[0], references[0])
    assert (np.argsort(one) == np.argsort(rewards[0])).all() and (one < 0).all()
    assert all_good(np.array([[9.0, 1.0], [-9.0, 1.0]]), [0.0, 0.0]).argmax() == 1
    normal = draw.normal(2.0, 3.0, 100_000)
    assert good_enough(normal) == pytest.approx(2.0 + 1.03643 * 3.0, abs=0.05)
    positive = draw.uniform(0.1, 1, (2, 9))
    assert np.allclose(harmonic(np.stack([positive[0]] * 2), [0.3, 0.7]), positive[0])
    assert np.allclose(harmonic(positive, [1.0, 0.0]), positive[0])
    assert (harmonic(positive, [0.4, 0.6]) <= positive.max(0)).all()
    with pytest.raises(DataError, match="above 0"):
        harmonic(np.zeros((2, 1)), [0.5, 0.5])
