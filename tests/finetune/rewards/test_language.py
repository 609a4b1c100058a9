"""The share of words in one language."""

import pytest

from seeklet.finetune.errors import RecipeError, RewardError
from seeklet.finetune.rewards.language import Language


@pytest.mark.parametrize(
    ("completion", "language", "score"),
    [
        ("<think>First we add three and four.</think>The result is seven.", "en", 1.0),
        # Six words, six words, four words; py3langid tells the sentences apart.
        (
            "<think>Wir rechnen zuerst die Summe aus. Then we compute the other side.</think>Sie ist gleich zwölf.",
            "de",
            10 / 16,
        ),
        # Chinese counts by the character: five words and two characters.
        ("We add three 这是 and get", "en", 5 / 7),
        ("这是一个问题。 So it is", "zh", 6 / 9),
        ("Это простая задача. The sum is small.", "ru", 3 / 7),
        # Formulas, code, numbers and names of one letter are no words.
        ("$x + y = z$ `for i in range(3)` 12 x \\(a\\) \\frac{1}{2} Die Summe ist ungerade.", "de", 1.0),
        ("$x + 1$", "en", 1.0),
        ("", "en", 1.0),
    ],
)
def test_share_of_words(completion: str, language: str, score: float) -> None:
    assert Language(language)(completion, {}) == pytest.approx(score)
    assert Language(column="language")(completion, {"language": language}) == pytest.approx(score)


def test_only_the_part_that_is_asked_for() -> None:
    completion = "<think>Dann addieren wir beide Zahlen.</think>The sum of both numbers is seven."
    assert Language("de", of="reasoning")(completion, {}) == 1.0
    assert Language("de", of="answer")(completion, {}) == 0.0


def test_a_short_piece_counts_like_the_one_before() -> None:
    # Neither "Gut." nor "Also." is enough to tell.
    assert Language("de")("Das ist die richtige Antwort. Gut. Also.", {}) == 1.0


def test_an_unknown_language_is_refused() -> None:
    with pytest.raises(RecipeError, match='there is no "german"; allowed: af, am, '):
        Language("german")
    with pytest.raises(RecipeError, match="give one of them"):
        Language()
    with pytest.raises(RewardError, match='"language" is "german"'):
        Language(column="language")("Gut", {"language": "german"})
