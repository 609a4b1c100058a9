"""`seeklet rollout`: a recipe carried out, gone on with after every kind of end, and every refusal in a line."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from seeklet.finetune.attempts import Attempts
from seeklet.finetune.data.read import read_records
from seeklet.finetune.recipe import RolloutRecipe, load_recipe
from seeklet.finetune.rollout_stage import count_sampled
from tests.finetune.conftest import PLAIN_TERMINAL, RunHere
from tests.finetune.sampling_runs import read_lines, write_adapter, write_model, write_prompts, write_recipe

SAME = ("dataset.jsonl", "unsolved.jsonl", "report.json", "attempts-0.jsonl")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a model, held-out problems and a recipe."""
    folder = tmp_path_factory.mktemp("rollout")
    held_out = write_prompts(folder / "held_out.jsonl", start=20, number=8)
    write_recipe(folder, prompts={"validation": [str(held_out)]})
    return folder


@pytest.fixture(scope="module")
def done(root: Path) -> Path:
    """Return the folder of a rollout that was never stopped."""
    process = start(root / "rollout.yaml", "output.dir=" + str(root / "once"))
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    assert "Traceback" not in errors
    (root / "once.txt").write_text(output)
    return root / "once"


def start(recipe: Path, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "seeklet.finetune", "rollout", str(recipe), *arguments]
    return subprocess.Popen(
        command,
        env=os.environ | PLAIN_TERMINAL | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    )


def test_the_dataset_and_what_is_said_of_it(root: Path, done: Path) -> None:
    rows, report = read_lines(done / "dataset.jsonl"), json.loads((done / "report.json").read_text())
    # 24 problems, of which the last four are held out.
    assert report["num_prompts"] == 20 and report["num_attempts"] == 80
    assert 0 < report["num_kept"] == len(rows) < report["num_attempts"]
    questions = {row["messages"][0]["content"] for row in rows}
    assert questions <= {f"{i}+{i + 1}" for i in range(20)}
    for row in rows:
        assert row["messages"][1]["role"] == "assistant"
        assert row["provenance"]["model"] == "model" and row["provenance"]["prompt"].startswith("sums.jsonl:")
    said = (root / "once.txt").read_text()
    assert "20 prompts, 8 held out" in said
    assert f"Data set: {len(rows)} rows in {done / 'dataset.jsonl'}" in said
    for name, number in (("attempts", 80), ("rows kept", len(rows))):
        assert any(name in line and f" {number} " in line for line in said.splitlines())
    for name in (*SAME, "report.md"):
        assert str(root) not in (done / name).read_text(), "no folder of this machine"
    recipe = load_recipe(done / "recipe.yaml", (), RolloutRecipe)
    assert recipe.sampling.threshold == -0.5 and recipe.output.dir == str(done)
    # As training reads it.
    assert len(list(read_records(str(done / "dataset.jsonl")))) == len(rows)


def test_killed_and_resumed_it_is_the_same(root: Path, done: Path, run_here: RunHere) -> None:
    killed = root / "killed"
    process = start(root / "rollout.yaml", f"output.dir={killed}")
    while process.poll() is None and count_sampled(killed) < 3:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL, "it was done before it could be killed"
    assert 3 <= count_sampled(killed) < 20 and not (killed / "dataset.jsonl").exists()
    code, _, errors = run_here("rollout", root / "rollout.yaml", f"output.dir={killed}")
    sampled = count_sampled(killed)
    assert (code, errors) == (
        2,
        f"output.dir: {killed} holds a rollout with attempts at {sampled} prompts. Go on with it: --resume. Begin "
        "another: output.dir=NEW, or delete the folder first\n",
    )
    code, output, errors = run_here("rollout", root / "rollout.yaml", f"output.dir={killed}", "--resume")
    assert code == 0, errors
    assert f"sampling, prompts: {20 - sampled} in" in output
    for name in SAME:
        assert (killed / name).read_bytes() == (done / name).read_bytes()


def test_two_processes_make_the_same_dataset(root: Path, done: Path) -> None:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    group = {"MASTER_ADDR": "localhost", "MASTER_PORT": port, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    out = f"output.dir={root / 'two'}"
    processes = [start(root / "rollout.yaml", out, **group, RANK=str(rank), LOCAL_RANK=str(rank)) for rank in range(2)]
    try:
        said = [process.communicate(timeout=120) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], said
    assert "Data set" in said[0][0] and said[1][0] == "", "the first one speaks"
    assert len(read_lines(root / "two" / "attempts-1.jsonl")) == 1 + 10
    assert (root / "two" / "dataset.jsonl").read_bytes() == (done / "dataset.jsonl").read_bytes()


def test_a_gpu_for_each_process(root: Path, run_here: RunHere, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(name, "8")
    code, _, errors = run_here("rollout", root / "rollout.yaml", f"output.dir={root / 'eight'}")
    assert (code, errors) == (2, "8 processes were started, and there are 4 GPUs; allowed: one process for each\n")
    assert not (root / "eight").exists()


def test_ctrl_c_says_how_to_go_on(root: Path, run_here: RunHere, monkeypatch: pytest.MonkeyPatch) -> None:
    make, calls = Attempts.make, []

    def stop(self: Attempts, *args: object) -> object:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return make(self, *args)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(Attempts, "make", stop)
    out = root / "stopped"
    code, output, _ = run_here("rollout", root / "rollout.yaml", f"output.dir={out}")
    assert code == 130
    assert f"Stopped: 4 prompts have their attempts in {out}; --resume goes on from there" in output
    monkeypatch.setattr(Attempts, "make", make)

    def fill(*_: object) -> object:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(Attempts, "make", fill)
    code, _, errors = run_here("rollout", root / "rollout.yaml", f"output.dir={out}", "--resume")
    assert code == 2 and errors.startswith("the GPU's memory is full; lower sampling.batch_size or ")


def test_other_filters_keep_others_of_the_same_attempts(
    root: Path,
    done: Path,
    run_here: RunHere,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    out = root / "filtered"
    out.mkdir()
    for name in ("attempts-0.jsonl", "recipe.yaml"):
        (out / name).write_bytes((done / name).read_bytes())

    def refuse(*_: object) -> object:
        raise AssertionError("nothing is to be sampled again")

    monkeypatch.setattr(Attempts, "make", refuse)
    code, _, errors = run_here(
        "rollout", root / "rollout.yaml", f"output.dir={out}", "--resume", "sampling.max_per_prompt=1"
    )
    assert code == 0, errors
    rows = read_lines(out / "dataset.jsonl")
    questions = [row["messages"][0]["content"] for row in rows]
    assert len(questions) == len(set(questions)) == json.loads((done / "report.json").read_text())["num_prompts_kept"]
    code, output, errors = run_here(
        "rollout", root / "rollout.yaml", f"output.dir={out}", "--resume", "sampling.min_tokens=12"
    )
    assert code == 0 and "Data set: 0 rows" in output
    assert "no row is kept, so there is nothing to train on; the commonest reason (" in caplog.text
    assert (out / "dataset.jsonl").read_bytes() == b""


def test_what_it_may_not_go_on_with(root: Path, done: Path, tmp_path: Path, run_here: RunHere) -> None:
    recipe, again = root / "rollout.yaml", (f"output.dir={done}", "--resume")
    for change, said in (
        ("sampling.temperature=0.5", "sampling.temperature: is 0.5, but the rollout in {} began with 1.0; attempts "),
        ("model.dtype=bfloat16", "model.dtype: is 'bfloat16', but the rollout in {} began with 'float32'; attempts "),
    ):
        code, _, errors = run_here("rollout", recipe, *again, change)
        assert code == 2 and errors.startswith(said.format(done)) and errors.count("\n") == 1
    assert run_here("rollout", recipe, f"output.dir={tmp_path / 'new'}", "--resume")[::2] == (
        2,
        f"output.dir: {tmp_path / 'new'} does not exist or is empty, so there is nothing to go on with; leave out "
        "--resume\n",
    )
    (tmp_path / "notes.txt").write_text("mine")
    assert run_here("rollout", recipe, f"output.dir={tmp_path}")[::2] == (
        2,
        f"output.dir: {tmp_path} holds files and no rollout; name a folder that is new or empty\n",
    )
    # The same recipe, and another model where the first one was.
    other = tmp_path / "other"
    other.mkdir()
    for name in ("attempts-0.jsonl", "recipe.yaml"):
        (other / name).write_bytes((done / name).read_bytes())
    header, rest = (other / "attempts-0.jsonl").read_text().split("\n", 1)
    weights = json.loads(header)["weights"]
    (other / "attempts-0.jsonl").write_text(header.replace(weights, "0" * 16) + "\n" + rest)
    code, _, errors = run_here("rollout", recipe, f"output.dir={other}", "--resume")
    assert code == 2
    assert f'holds attempts of another rollout: weights was "{"0" * 16}" and is "{weights}"' in errors
    (other / "recipe.yaml").write_text("- [")
    code, _, errors = run_here("rollout", recipe, f"output.dir={other}", "--resume")
    assert code == 2 and errors.startswith(f"{other / 'recipe.yaml'} is damaged; ")


def test_dry_run(root: Path, run_here: RunHere) -> None:
    out = root / "dry"
    code, output, errors = run_here("rollout", root / "rollout.yaml", f"output.dir={out}", "--dry-run")
    assert code == 0, errors
    assert not out.exists()
    # "0+1", and <｜User｜> and <｜Assistant｜>; "19+20" is the longest.
    assert "20 prompts read, 20 to sample; 8 held out" in output and "at most 7" in output
    assert "8 texts of evaluations" in output
    assert "80 attempts: 4 at each prompt, up to 12 tokens each; 10 batches of 2 prompts" in output
    assert "rewards: overlong (weight 1)" in output and "max_foreign_share: 0.1" in output
    code, output, errors = run_here(
        "rollout",
        root / "rollout.yaml",
        f"sampling.evaluation_sets=[{write_prompts(root / 'known.jsonl', start=3, number=2)}]",
        "prompts.max_tokens=6",
        "prompts.on_long=skip",
        "--dry-run",
    )
    assert code == 0, errors
    assert "20 prompts read, 8 to sample" in output
    assert "− in an evaluation set: 2" in output and "− too long: 10" in output


MISTAKES = {
    "no reward says what is right": (
        ("sampling.threshold=null",),
        "sampling.threshold: none is given, and no reward verifies answers (overlong don't); allowed: ",
    ),
    "an unknown reward": (("rewards=[{kind: maht}]",), 'rewards[0].kind: there is no reward "maht"'),
    "an evaluation set that is not there": (
        ("sampling.evaluation_sets=[gone.jsonl]",),
        "override 'sampling.evaluation_sets=[gone.jsonl]': sampling.evaluation_sets: gone.jsonl: No such file",
    ),
    "the least score of no reward": (
        ("sampling.min_rewards={exact: 1.0}",),
        "override 'sampling.min_rewards={exact: 1.0}': sampling.min_rewards: there is no reward \"exact\"; allowed: "
        "overlong",
    ),
    "longer than it can be": (
        ("sampling.min_tokens=13",),
        "override 'sampling.min_tokens=13': sampling.min_tokens: is 13, and attempts end at sampling.max_new_tokens, "
        "12",
    ),
    "two templates": (
        ("sampling.chat_template=qwen2.5",),
        "override 'sampling.chat_template=qwen2.5': sampling.chat_template: prompts.chat_template is ",
    ),
    "a prompt too long": (("prompts.max_tokens=6",), "{root}/sums.jsonl:11: the prompt has 7 tokens, and 10 are "),
    "nothing held out": (("prompts.validation=0.001",), "prompts.validation: 0.001 holds out none of 24 prompts; "),
    "another stage": (("stage=sft",), "override 'stage=sft': stage: sft is not of this command; its own is: seeklet "),
    "no folder of a model": (
        ("model.path={root}",),
        "override 'model.path={root}': model.path: {root}: holds no config.json, so no model, and no adapter",
    ),
    "an unknown key": (
        ("sampling.num_sample=3",),
        "override 'sampling.num_sample=3': sampling.num_sample: unknown key; nearest: num_samples",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_a_line(name: str, root: Path, tmp_path: Path, run_here: RunHere) -> None:
    overrides, said = MISTAKES[name]
    given = [override.format(root=root) if "{root}" in override else override for override in overrides]
    for dry_run in ((), ("--dry-run",)):
        code, output, errors = run_here(
            "rollout", root / "rollout.yaml", f"output.dir={tmp_path / 'out'}", *given, *dry_run
        )
        assert (code, output) == (2, "")
        expected = said.replace("{root}", str(root))
        assert errors.startswith(expected) and errors.count("\n") == 1
        assert not (tmp_path / "out").exists()


def test_bad_rows_are_named(root: Path, tmp_path: Path, run_here: RunHere) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"question": "1+1", "answer": "2"}\n{"question": 3}\n{"quest": "1+2"}\n{"question": \n')
    code, output, errors = run_here("rollout", root / "rollout.yaml", f"prompts.train={bad}")
    assert (code, output) == (2, "")
    lines = errors.splitlines()
    assert [line.removeprefix(f"{bad}:")[0] for line in lines] == ["2", "3", "4"]
    assert "question" in lines[0] and "quest" in lines[1]


def test_an_adapter_samples(root: Path, done: Path, tmp_path: Path, run_here: RunHere) -> None:
    write_model(tmp_path / "model")
    adapter = write_adapter(tmp_path / "adapter")
    AutoTokenizer.from_pretrained(root / "model").save_pretrained(adapter)
    out = tmp_path / "out"
    recipe = root / "rollout.yaml"
    code, _, errors = run_here("rollout", recipe, f"model.path={adapter}", f"output.dir={out}")
    assert code == 0, errors
    before, after = (json.loads((folder / "attempts-0.jsonl").read_text().partition("\n")[0]) for folder in (done, out))
    assert before["weights"] != after["weights"] and after["model"] == "adapter"
    assert read_lines(done / "attempts-0.jsonl")[1:] != read_lines(out / "attempts-0.jsonl")[1:]
    (tmp_path / "model").rename(tmp_path / "moved")
    assert run_here("rollout", recipe, f"model.path={adapter}", f"output.dir={tmp_path / 'gone'}")[::2] == (
        2,
        f"model.path: {adapter} was trained on {tmp_path / 'model'}, and that is not there\n",
    )
