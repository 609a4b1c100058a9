"""Labels stand on the answer only, padding where it belongs, and every problem is used once."""

from seeklet.finetune.demo.batches import batches, encode_conversations, encode_prompts
from seeklet.finetune.demo.task import ChainSums, Problem
from seeklet.finetune.demo.tokenizer import VOCABULARY, build_tokenizer

SHORT = Problem("1+2", "<think>1+2=3</think><answer>3</answer>", {})
LONG = Problem("1+9-4", "<think>1+9=10;10-4=6</think><answer>6</answer>", {})


def ids(*tokens: str) -> list[int]:
    return [VOCABULARY.index(token) for token in tokens]


def test_labels_by_hand() -> None:
    encoded = encode_conversations(build_tokenizer(), [SHORT, LONG])
    prompt = ids("<｜begin▁of▁sentence｜>", "<｜User｜>", "1", "+", "2", "<｜Assistant｜>")
    answer = ids("<think>", *"1+2=3", "</think>", "<answer>", "3", "</answer>", "<｜end▁of▁sentence｜>")
    # The long conversation has 2 tokens more in its prompt and 7 more in its solution.
    padding = 2 + len(";10-4=6") + 1
    assert encoded["input_ids"][0].tolist() == prompt + answer + ids("<｜pad｜>") * padding
    assert encoded["attention_mask"][0].tolist() == [1] * 17 + [0] * padding
    assert encoded["labels"][0].tolist() == [-100] * 6 + answer + [-100] * padding
    assert encoded["attention_mask"][1].tolist() == [1] * (17 + padding)
    assert encoded["labels"][1].tolist()[:8] == [-100] * 8
    assert encoded["labels"][1].tolist()[8:] == encoded["input_ids"][1].tolist()[8:]


def test_closing_think_tag_is_trained_on() -> None:
    labels = encode_conversations(build_tokenizer(), [SHORT])["labels"][0].tolist()
    assert VOCABULARY.index("</think>") in labels


def test_prompts_end_where_generation_starts() -> None:
    prompts = encode_prompts(build_tokenizer(), [SHORT, LONG])
    start = ids("<｜begin▁of▁sentence｜>", "<｜User｜>", "1", "+", "2", "<｜Assistant｜>")
    assert prompts["input_ids"][0].tolist() == ids("<｜pad｜>") * 2 + start
    assert prompts["attention_mask"].tolist() == [[0, 0, 1, 1, 1, 1, 1, 1], [1] * 8]


def test_batches_use_every_problem_once_and_similar_lengths_together() -> None:
    problems = ChainSums(seed=0, num_test=0, num_validation=0).train(256)
    groups = list(batches(problems, size=8, seed=0, pool=8))
    assert [len(group) for group in groups] == [8] * 32
    assert sorted(p.prompt for group in groups for p in group) == sorted(p.prompt for p in problems)

    def padding(groups: list) -> int:
        lengths = [[len(p.solution) for p in group] for group in groups]
        return sum(max(group) * len(group) - sum(group) for group in lengths)

    unsorted = [problems[i : i + 8] for i in range(0, 256, 8)]
    assert padding(groups) < 0.4 * padding(unsorted)
    assert [p.prompt for p in groups[0]] == [p.prompt for p in next(iter(batches(problems, 8, seed=0)))]


def test_what_does_not_fill_a_batch_is_left_out() -> None:
    problems = ChainSums(seed=0, num_test=0, num_validation=0).train(21)
    assert [len(group) for group in batches(problems, size=8, seed=0, pool=2)] == [8, 8]
