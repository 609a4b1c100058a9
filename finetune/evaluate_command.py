"""`seeklet evaluate`: the model of a recipe, before and after training, on conversations it was not trained on."""

from .train_command import OverridesArgument, RecipeArgument


def evaluate(recipe: RecipeArgument, overrides: OverridesArgument = None) -> None:
    """Measure the model of a recipe on its held-out conversations, before and after training.

    Held-out loss and perplexity, and what the recipe's `evaluation.metrics` name. The report, a table with answers
    side by side, goes to the recipe's `output.dir`.

        seeklet evaluate recipes/sft_smollm2-135m_support_cpu.yaml

        seeklet evaluate recipes/sft_smollm2-135m_support_cpu.yaml evaluation.num_examples=50
    """
    from .recipe import load_recipe

    loaded = load_recipe(recipe, overrides or ())
    # Brings trainers and models, which a recipe that is refused never needs.
    from .evaluate import evaluate as evaluate_recipe

    evaluate_recipe(loaded)
