"""What two tokenizers share: whether student and teacher can be compared token by token."""

from transformers import PreTrainedTokenizerBase

from ..errors import RecipeError
from ..reasoning import END_THINK, THINK


def shared_vocabulary(
    student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase, num_student: int, num_teacher: int
) -> int:
    """Return how many logits, from the first on, mean the same to student and teacher.

    The sizes of one family differ where the rows behind the last token are padding: Qwen2.5 has 151,665 tokens, and
    151,936 rows up to 3B and 152,064 from 7B on; 151,936 are compared.

    Args:
        student: its tokenizer.
        teacher: its tokenizer.
        num_student: logits of the student.
        num_teacher: logits of the teacher.

    Raises:
        RecipeError: the tokenizers have different tokens, or more of them than there are logits.
    """
    vocabularies = [{number: token for token, number in each.get_vocab().items()} for each in (student, teacher)]
    numbers = sorted(vocabularies[0].keys() | vocabularies[1].keys())
    different = [n for n in numbers if vocabularies[0].get(n) != vocabularies[1].get(n)]
    if different:
        texts = [repr(each[different[0]]) if different[0] in each else "none" for each in vocabularies]
        raise RecipeError(
            f"teacher and student do not write the same tokens: {len(different):,} of them differ, the first is "
            f"{different[0]:,}, which is {texts[0]} of the student ({_describe(student)}) and {texts[1]} of the "
            f"teacher ({_describe(teacher)}); allowed: the same tokens, or stage distill with distillation.alignment: "
            "text, which compares texts"
        )
    for name, tokenizer, number in (("student", student, num_student), ("teacher", teacher, num_teacher)):
        if numbers and numbers[-1] >= number:
            raise RecipeError(
                f"the tokenizer of the {name} ({_describe(tokenizer)}) writes token {numbers[-1]:,}, and the {name} "
                f"has {number:,} logits; allowed: the tokenizer that belongs to the model"
            )
    return min(num_student, num_teacher)


def describe_split_tags(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Return a warning where the tags of reasoning are several tokens, which works and costs some; else None."""
    lengths = {tag: len(tokenizer.encode(tag, add_special_tokens=False)) for tag in (THINK, END_THINK)}
    split = [f"{tag} as {length} tokens" for tag, length in lengths.items() if length > 1]
    if not split:
        return None
    return (
        f"the student's tokenizer ({_describe(tokenizer)}) writes {' and '.join(split)}, all of which it has to learn; "
        "as single tokens they would have to be added to the tokenizer and the model's embeddings first"
    )


def _describe(tokenizer: PreTrainedTokenizerBase) -> str:
    name = tokenizer.name_or_path
    return f"{name}, {len(tokenizer):,} tokens" if name else f"{len(tokenizer):,} tokens"
