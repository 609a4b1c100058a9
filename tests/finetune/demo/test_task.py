"""Written-out solutions agree with reasoning-gym's verifier, and no split shares a problem with another."""

import pytest

from seeklet.finetune.demo.task import SPLIT_SPACING, ChainSums, parse_answer, write_solution

TASK = ChainSums(seed=3, num_test=400, num_validation=200)


def test_solution_is_written_out_step_by_step() -> None:
    assert write_solution("4 - 9 + 2 + 13") == "<think>4-9=-5;-5+2=-3;-3+13=10</think><answer>10</answer>"


def test_every_step_of_every_trace_is_right() -> None:
    for problem in TASK.train(500):
        steps = problem.solution.split("</think>")[0].removeprefix("<think>").split(";")
        terms = problem.prompt
        for step in steps:
            left, right = step.split("=")
            # Python itself as the reference; the text consists of digits and signs only.
            assert eval(left) == int(right)
        assert eval(terms) == int(steps[-1].split("=")[1])


def test_verifier_accepts_the_solutions_and_nothing_near_them() -> None:
    for problem in TASK.test[:100]:
        answer = int(problem.entry["answer"])
        assert TASK.is_correct(problem.solution, problem)
        assert not TASK.is_correct(f"<think></think><answer>{answer + 1}</answer>", problem)
        # reasoning-gym gives part marks to an answer that contains the right one.
        assert not TASK.is_correct(f"<think></think><answer>{answer} or {answer + 1}</answer>", problem)
        assert not TASK.is_correct(str(answer), problem)


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        ("<think>1+1=2</think><answer>2</answer>", "2"),
        ("<think></think><answer>-12</answer>", "-12"),
        ("<think>1+1=2</think><answer>2", None),
        ("<think>1+1=2<answer>2</answer>", None),
        ("1+1=2</think><answer>2</answer>", None),
        ("", None),
    ],
)
def test_answer_is_read_only_from_a_well_formed_completion(completion: str, answer: str | None) -> None:
    assert parse_answer(completion) == answer


def test_splits_share_no_problem() -> None:
    test = {problem.prompt for problem in TASK.test}
    validation = {problem.prompt for problem in TASK.validation}
    train = {problem.prompt for problem in TASK.train(20_000)}
    assert len(test) == 400
    assert len(validation) == 200
    assert len(train) == 20_000
    assert not test & validation
    assert not train & (test | validation)


def test_a_training_problem_that_the_generator_repeats_from_the_test_set_is_left_out() -> None:
    drawn = TASK.train(1)[0]
    task = ChainSums(seed=3, num_test=0, num_validation=0)
    task._held_out = {drawn.prompt}
    assert drawn.prompt not in {problem.prompt for problem in task.train(5_000)}


def test_neighbouring_seeds_share_no_items() -> None:
    # Item i of seed s is drawn from Random(s + i): the starts of all splits of all seeds must lie far apart.
    starts = [
        ChainSums(seed, num_test=0, num_validation=0)._source(split).seed
        for seed in range(3)
        for split in ("test", "validation", "train")
    ]
    gaps = [b - a for a, b in zip(sorted(starts), sorted(starts)[1:], strict=False)]
    assert min(gaps) >= SPLIT_SPACING
