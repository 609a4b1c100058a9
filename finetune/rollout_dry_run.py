"""What a rollout's recipe would do: its prompts in tokens, what is left out of them, attempts and batches."""

import math

from rich.console import Console

from .meta_model import build_meta_model
from .recipe import RolloutRecipe, as_yaml
from .rollout.admission import admit
from .rollout.run import index_evaluation_sets
from .rollout_stage import plan_rollout
from .sampling_inputs import check_attempts, describe_rewards, say
from .training_model import check_drafts


def show_rollout_dry_run(recipe: RolloutRecipe, console: Console) -> None:
    """Print the whole recipe, what becomes of its prompts, its rewards and how much is sampled.

    Raises:
        RecipeError: model, adapter or rewards are not as the recipe says.
        AdapterError: the adapter cannot be read.
        DataError: the prompts or evaluation sets cannot be used.
    """
    # Before anything is printed: what is wrong with the recipe stands alone then.
    inputs, settings = plan_rollout(recipe)
    model = build_meta_model(inputs.weights.model)
    check_drafts(model, settings.use_mtp, "sampling.use_mtp")
    index = index_evaluation_sets(settings, inputs.held_out)
    encode = check_attempts(inputs, settings, "sampling").encode
    admitted = admit(inputs.prompts, encode, index, settings.max_prompt_tokens)

    console.rule("recipe, defaults included")
    say(console, as_yaml(recipe).rstrip())
    console.rule("prompts")
    number, lengths = len(admitted.prompts), [len(each.ids) for each in admitted.encoded]
    say(console, f"{len(inputs.prompts):,} prompts read, {number:,} to sample; {len(inputs.held_out):,} held out")
    for reason, left_out in admitted.left_out.items():
        if left_out:
            say(console, f"− {reason}: {left_out:,}")
    if lengths:
        say(console, f"{sum(lengths) / number:,.0f} tokens on average, at most {max(lengths):,}")
    say(console, f"{index.num_texts:,} texts of evaluations, which nothing may overlap with")
    say(console, describe_rewards(inputs.rewards))
    console.rule("sampling")
    size = max(1, settings.batch_size // settings.num_samples)
    say(
        console,
        f"{number * settings.num_samples:,} attempts: {settings.num_samples:,} at each prompt, up to "
        f"{settings.max_new_tokens:,} tokens each; {math.ceil(number / size):,} batches of {size:,} prompts",
    )
    console.rule("model")
    adapter = " with an adapter" if inputs.weights.adapter else ""
    say(console, f"{sum(each.numel() for each in model.parameters()):,} parameters{adapter}")
    say(console, "Dry run: nothing was sampled, and nothing written.")
