"""Hangs, crashes, threads and forks cost one answer and never the pool."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from spying import spy

from mixpo.recipe import VerifyTable
from mixpo.types import Question, Response
from mixpo.verify import Verifier, processes
from mixpo.verify import pool as pool_module
from mixpo.verify.check import TOLERANCE, judge, make_algebra
from mixpo.verify.judgement import Judgement, Options
from mixpo.verify.pool import EXCEEDED, FormulaPool
from mixpo.verify.processes import DIED, TIMED_OUT, Reply, UnavailableError, Workers

TOWER = "9^{9^{9^{9}}}"
"""Evaluating it never ends."""


def test_a_hanging_formula_is_undecided_within_the_budget_and_the_pool_goes_on() -> None:
    with FormulaPool(timeout_s=1.0, workers=1) as own:
        assert own.compare("x+1", "1+x", TOLERANCE).outcome == "correct"  # started, so that only the time limit is measured
        (victim,) = own.processes()
        start = time.monotonic()
        judgement = own.compare(TOWER, "1", TOLERANCE)
        assert time.monotonic() - start < 240
        assert judgement == ("undecided", "formula check exceeded 1 s")
        assert own.compare("x+2", "2+x", TOLERANCE).outcome == "correct"
        survivors = own.processes()
        assert victim not in survivors
        assert own.compare(TOWER, "1", TOLERANCE) == judgement
        assert own.processes() == survivors, "a formula that hung once is remembered"


def test_a_killed_worker_is_replaced_and_asked_again() -> None:
    with FormulaPool(timeout_s=1, workers=1) as own:
        assert own.compare("x+1", "1+x", TOLERANCE).outcome == "correct"
        (pid,) = own.processes()
        killer = threading.Timer(0.3, os.kill, (pid, signal.SIGKILL))
        killer.start()
        # The kill says nothing about the formula, which is compared again and then reaches the limit by itself.
        assert own.compare(TOWER, "1", TOLERANCE) == ("undecided", "formula check exceeded 1 s")
        assert own.timeouts == 1
        killer.join()
        assert own.compare("x+2", "2+x", TOLERANCE).outcome == "correct"
        (pid,) = own.processes()
        os.kill(pid, signal.SIGKILL)  # between two questions
        while own.processes():
            time.sleep(0.01)
        assert own.compare("x+3", "3+x", TOLERANCE).outcome == "correct"


def test_any_thread_gets_the_same_judgements(pool: FormulaPool) -> None:
    questions = [("x+1", "1+x"), ("x+1", "x-1"), ("2\\sqrt{3}", "\\sqrt{12}"), ("\\frac{", "1")] * 3
    here = [pool.compare(predicted, gold, TOLERANCE) for predicted, gold in questions]
    there: dict[int, object] = {}

    def ask(number: int) -> None:
        there[number] = pool.compare(*questions[number], tolerance=TOLERANCE / 2)  # another tolerance, so nothing is remembered

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(len(questions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [there[number] for number in range(len(questions))] == here
    assert [judgement.outcome for judgement in here[:4]] == ["correct", "wrong", "correct", "undecided"]


def test_two_workers_run_at_once() -> None:
    with FormulaPool(timeout_s=1.5, workers=2) as own:
        threads = [threading.Thread(target=own.compare, args=(TOWER, str(number), TOLERANCE)) for number in (1, 2)]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + 60
        while len(own.processes()) < 2 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert len(own.processes()) == 2
        own.close()
        for thread in threads:
            thread.join(timeout=60)
            assert not thread.is_alive(), "closing ends a comparison that is under way"
        assert own.processes() == []


def test_nothing_starts_before_it_is_needed_and_nothing_stays() -> None:
    own = FormulaPool(timeout_s=5, workers=2)
    assert own.processes() == []
    own.close()
    assert own.compare("x", "y", TOLERANCE) == ("undecided", "verifier is closed")
    assert own.processes() == []


def test_a_worker_that_cannot_start_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    with FormulaPool(timeout_s=5, workers=1) as own:
        judgement = own.compare("x", "y", TOLERANCE)
        assert judgement.outcome == "undecided"
        assert "worker process cannot be started" in judgement.reason


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "math_verify.py").write_text("raise ImportError('gone')")
    monkeypatch.syspath_prepend(str(tmp_path))
    with FormulaPool(timeout_s=5, workers=1) as own:
        assert own.compare("x", "y", TOLERANCE) == ("undecided", "math-verify cannot be imported: gone")


@pytest.mark.slow
def test_workers_are_replaced_after_many_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "TASKS_PER_WORKER", 1)
    with FormulaPool(timeout_s=20, workers=1) as own:
        own.compare("x+1", "1+x", TOLERANCE)
        (first,) = own.processes()
        assert own.compare("x+2", "2+x", TOLERANCE).outcome == "correct"
        assert first not in own.processes()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="only where processes fork")
def test_a_forked_child_uses_workers_of_its_own(pool: FormulaPool) -> None:
    assert pool.compare("x+1", "1+x", TOLERANCE).outcome == "correct"
    child = os.fork()
    if child == 0:
        answer = pool.compare("x+5", "5+x", TOLERANCE)
        pool.close()
        os._exit(0 if answer.outcome == "correct" else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert pool.compare("x+6", "6+x", TOLERANCE).outcome == "correct", "the parent's worker is untouched"


def test_a_script_without_a_main_guard_works_and_ends(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("from mixpo.verify import check\nprint(check('x+1', '1+x', 'formula').outcome)\n")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=240, env=environment)
    assert (done.stdout, done.stderr, done.returncode) == ("correct\n", "", 0)


def test_python_code_in_an_answer_is_never_evaluated(pool: FormulaPool, tmp_path: Path) -> None:
    mark = tmp_path / "executed"
    options = Options(tolerance=TOLERANCE, algebra=make_algebra(pool, TOLERANCE))
    for attack in (f"__import__('pathlib').Path('{mark}').touch()", f"$open('{mark}', 'w')$", f"\\sqrt{{open('{mark}','w')}}"):
        for kind in ("formula", "number", "auto"):
            assert judge(attack, "x+1", kind, options).outcome != "correct"
        assert pool.compare(attack, "x+1", TOLERANCE).outcome != "correct"
    assert not mark.exists()


@pytest.mark.skipif(not hasattr(signal, "alarm"), reason="only where a process can set itself an alarm")
def test_a_hanging_worker_does_not_outlive_a_killed_parent() -> None:
    code = (
        "import threading\nfrom mixpo.verify.pool import FormulaPool\n"
        "pool = FormulaPool(timeout_s=1, workers=1)\npool.compare('x+1', '1+x', 1e-6)\nprint(pool.processes()[0], flush=True)\n"
        f"pool.timeout_s = 2\npool.compare('{TOWER}', '1', 1e-6)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    worker = int(parent.stdout.readline())
    time.sleep(0.3)
    parent.kill()
    parent.communicate()
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            os.kill(worker, 0)
            state = Path(f"/proc/{worker}/stat")
            if state.exists() and ") Z " in state.read_text():
                return  # dead, and nobody has reaped it
        except (ProcessLookupError, FileNotFoundError):
            return
        time.sleep(0.05)
    pytest.fail(f"worker {worker} is still there")


def test_a_busy_machine_changes_no_verdict() -> None:
    """The limit counts the worker's processor time, so that loops beside it take longer and decide nothing."""
    questions = [("x^2-1", "(x-1)(x+1)"), ("\\sin^2 x+\\cos^2 x", "1"), ("x^3", "x^2")]
    with FormulaPool(timeout_s=1.5, workers=1) as own:
        alone = [own.compare(*question, TOLERANCE) for question in questions]
        loops = [subprocess.Popen([sys.executable, "-S", "-c", "while True: pass"]) for _ in range(4 * (os.cpu_count() or 1))]
        try:
            busy = [own.compare(*question, TOLERANCE / 2) for question in questions]  # another tolerance, so nothing is remembered
        finally:
            for loop in loops:
                loop.kill()
                loop.wait()
    assert busy == alone
    assert [judgement.outcome for judgement in alone] == ["correct", "correct", "wrong"]


@pytest.mark.slow
def test_a_time_out_is_asked_again_alone_and_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    spy(monkeypatch, Workers, "_ask", lambda *_: asked.append(1))
    path = tmp_path / "verdicts.sqlite"
    for _ in range(2):
        with FormulaPool(timeout_s=0.3, workers=1, cache=path) as own:
            assert own.compare(TOWER, "1", TOLERANCE).reason == f"{EXCEEDED} 0.3 s"
            assert own.compare(TOWER, "1", TOLERANCE).outcome == "undecided"
    assert len(asked) == 4, "twice in each run"


ASKED = Question(id="q", text="?", answer="(x+1)^2", kind="formula")
ANSWER = Response(question="q", index=0, text="Final answer: x^2+2x+1")


def test_a_second_verifier_starts_no_worker(tmp_path: Path) -> None:
    path = tmp_path / "cache" / "verdicts.sqlite"
    settings = VerifyTable(workers=1, timeout_s=60)
    with Verifier(settings, cache=path) as verifier:
        first = verifier.verify(ASKED, ANSWER, "final")
        assert verifier._pool.processes()
    with Verifier(settings, cache=path) as verifier:
        assert verifier.verify(ASKED, ANSWER, "final") == first
        assert not verifier._pool.processes()
    assert first.outcome == "correct"


@pytest.mark.parametrize(("reply", "times"), [({"outcome": "undecided", "reason": "a reason"}, 1), (TIMED_OUT, 4), (DIED, 4), (None, 2)])
def test_only_what_would_be_the_same_again_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reply: Reply | str | None, times: int
) -> None:
    asked = []

    def ask(_workers: Workers, request: Reply, _limit_s: float) -> Reply | str:
        asked.append(request)
        if reply is None:
            raise UnavailableError("gone")
        return reply

    monkeypatch.setattr(Workers, "_ask", ask)
    for _ in range(2):
        with FormulaPool(cache=tmp_path / "verdicts.sqlite") as pool:
            assert pool.compare("x", "y", 0.0).outcome == "undecided"
            remembered = [pool.compare("x", "y", 0.0) for _ in range(reply is not None)]
            assert len(remembered) == (reply is not None)
    assert len(asked) == times  # a time-out is asked again before it counts


def test_the_key_of_a_kept_verdict_holds_all_that_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []

    def ask(_workers: Workers, request: Reply, _limit_s: float) -> Reply | str:
        asked.append(request)
        return {"outcome": "wrong", "reason": "differ"}

    monkeypatch.setattr(Workers, "_ask", ask)
    for key in [("x", "y", 0.1), ("x", "y", 0.1), ("y", "x", 0.1), ("x", "y", 0.2), ("x y", "", 0.1)]:
        with FormulaPool(cache=tmp_path / "verdicts.sqlite") as own:
            assert own.compare(*key) == Judgement("wrong", "differ")
    assert len(asked) == 4
    pool_module._versions.cache_clear()
    monkeypatch.setattr(pool_module, "VERSION", pool_module.VERSION + 1)
    with FormulaPool(cache=tmp_path / "verdicts.sqlite") as own:
        own.compare("x", "y", 0.1)
    pool_module._versions.cache_clear()
    assert len(asked) == 5


@pytest.mark.slow
def test_a_bomb_that_is_asked_for_twice_at_once_is_compared_once() -> None:
    with FormulaPool(timeout_s=0.3, workers=2) as own:
        threads = [threading.Thread(target=own.compare, args=(TOWER, "1", TOLERANCE)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert own.timeouts == 1


def test_a_question_full_of_bombs_has_a_cap(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []

    def ask(_workers: Workers, request: Reply, _limit_s: float) -> Reply | str:
        asked.append(request["predicted"])
        return TIMED_OUT

    monkeypatch.setattr(Workers, "_ask", ask)
    answers = [f"9^{{9^{{9^{{{number}}}}}}}" for number in range(2, 33)]
    responses = [Response(question="q", index=i, text=f"Final answer: {answer}") for i, answer in enumerate([*answers, "(x+1)^2"])]
    with Verifier(VerifyTable(workers=2)) as verifier:
        verdicts = verifier.verify_all(ASKED, responses, "final")
        assert len(asked) == 2 * verifier.timeouts == 16, "each of the first batch twice, and none of the others"
    assert {verdict.reason for verdict in verdicts[8:31]} == {"not compared after 4 time-outs for this question"}
    assert verdicts[31].outcome == "correct", "what needs no worker is still decided"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_verdicts_are_the_same_on_a_busy_machine_and_after_a_kill() -> None:
    from verdicts import compare

    figures = compare(12, load=3, kills=1, timeout_s=2, start=24)  # with the one that never ends
    assert figures["different"] == 0, figures["first_different"]
    assert {"correct", "wrong", "undecided"} <= set(figures["outcomes"])
