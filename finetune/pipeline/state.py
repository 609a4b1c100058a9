"""What an earlier run left in a pipeline's folder, held against the pipeline: what is done, and what does not agree."""

from collections.abc import Callable
from pathlib import Path

from ..checkpoints import delete_checkpoint
from ..errors import RecipeError
from ..recipe import RolloutRecipe
from ..recipe.messages import find_nearest
from ..rollout_stage import FILTERS
from .hashes import hash_product
from .inputs import changed_input, hash_inputs
from .manifest import Manifest, StageRecord, changed_keys, hash_recipe, plain_recipe, read_manifest
from .settings import MANIFEST, Pipeline, Stage


def find_begin(pipeline: Pipeline, resume: bool, from_stage: str | None) -> Callable[[], Manifest]:
    """Return what gives the manifest to go on with, to be called when the folder is this process's alone.

    Raises:
        RecipeError: the folder is taken, or holds nothing to go on with, or there is no stage of that name.
    """
    names = [stage.name for stage in pipeline.stages]
    if from_stage is not None and from_stage not in names:
        near = find_nearest(from_stage, names)
        raise RecipeError(f"--from {from_stage}: no such stage; " + (f"nearest: {near}" if near else _allowed(names)))
    folder = pipeline.folder
    if folder.exists() and not folder.is_dir():
        raise RecipeError(f"output.dir: {folder} is a file, not a folder")
    found = folder.is_dir() and any(not entry.name.startswith(".") for entry in folder.iterdir())
    is_pipeline = (folder / MANIFEST).exists()
    if not resume and from_stage is None:
        if is_pipeline:
            raise RecipeError(_say_taken(folder, len(names)))
        if found:
            raise RecipeError(f"output.dir: {folder} holds files and no pipeline; name a folder that is new or empty")
        return Manifest
    option = "--resume" if resume else "--from"
    if not is_pipeline:
        what = f"holds no pipeline (no {MANIFEST})" if found else "does not exist or is empty"
        raise RecipeError(f"output.dir: {folder} {what}, so there is nothing to go on with; leave out {option}")
    return lambda: _read_agreeing(pipeline, from_stage)


def _allowed(names: list[str]) -> str:
    return f"allowed: {', '.join(names)}"


def _say_taken(folder: Path, number: int) -> str:
    manifest = read_manifest(folder)
    done = sum(record.is_done for record in manifest.stages.values()) if manifest else 0
    return (
        f"output.dir: {folder} holds a pipeline, of which {done} of {number} stages are done. Go on with it: --resume. "
        "Begin again at a stage: --from STAGE. Begin another: output.dir=NEW"
    )


def _read_agreeing(pipeline: Pipeline, from_stage: str | None) -> Manifest:
    """Return the manifest of the stages that are done, and of one that was interrupted.

    Raises:
        RecipeError: it is damaged, or it or what it speaks of does not agree with the pipeline.
    """
    manifest = _removed(pipeline, from_stage) if from_stage else read_manifest(pipeline.folder)
    assert manifest is not None
    names = [stage.name for stage in pipeline.stages]
    recorded = list(manifest.stages)
    for index, name in enumerate(recorded):
        if names[index : index + 1] != [name]:
            now = f"is {names[index]} now" if index < len(names) else "is gone"
            advice = f", or run from what is there now: --from {names[min(index, len(names) - 1)]}"
            raise RecipeError(
                f"stages: number {index + 1} in {pipeline.folder} was {name} and {now}; put it back{advice}"
            )
    products: dict[str, str] = {}
    for name, record in manifest.stages.items():
        stage = pipeline.stage(name)
        _check_recipe(pipeline, stage, record)
        _check_inputs(stage, record, products)
        if not record.is_done:
            break
        assert record.product_sha256 is not None
        _check_product(stage, record)
        products[name] = record.product_sha256
    if from_stage is not None and (missing := names[len(products) : names.index(from_stage)]):
        raise RecipeError(f"--from {from_stage}: {missing[0]}, before it, is not done; --resume goes on with that")
    return manifest


def _check_recipe(pipeline: Pipeline, stage: Stage, record: StageRecord) -> None:
    now = plain_recipe(stage)
    if hash_recipe(now) == record.recipe_sha256:
        return
    changed = changed_keys(record.recipe, now)
    if isinstance(stage.recipe, RolloutRecipe) and not record.is_done:
        # What is kept of the attempts is decided at the end.
        changed = [each for each in changed if each[0].removeprefix("sampling.").partition(".")[0] not in FILTERS]
    if changed:
        key, before, value = changed[0]
        more = f", and {len(changed) - 1} more keys differ" if len(changed) > 1 else ""
        state = "is done with" if record.is_done else "began with"
        raise RecipeError(
            f"{pipeline.source}: stages.{stage.name}.{key}: is {value}, but the stage {state} {before}{more}; set "
            f"it back, or do the stage again: --from {stage.name}"
        )


def _check_inputs(stage: Stage, record: StageRecord, products: dict[str, str]) -> None:
    now = hash_inputs(stage, products, record.inputs)
    key = changed_input(record.inputs, now)
    if key is not None:
        name = now.get(key, record.inputs.get(key, {})).get("name", "what an earlier stage left")
        raise RecipeError(
            f"stages.{stage.name}.{key}: {name} is not what the stage was done with; put it back as it was, or do the "
            f"stage again: --from {stage.name}"
        )


def _check_product(stage: Stage, record: StageRecord) -> None:
    advice = f"put it back as it was, or do the stage again: --from {stage.name}"
    try:
        found = hash_product(stage.product, record.files)
    except FileNotFoundError:
        raise RecipeError(f"{stage.product}, what stage {stage.name} left, is missing; {advice}") from None
    except OSError as error:
        raise RecipeError(f"{stage.product}: {error.strerror or error}; {advice}") from None
    for name in sorted({*found, *record.files}):
        before, now = record.files.get(name), found.get(name)
        if before is None or now is None or before["sha256"] != now["sha256"]:
            what = "is missing" if now is None else "was not there" if before is None else "is not the same"
            raise RecipeError(f"{stage.product}: {name} {what} since stage {stage.name} was done; {advice}")


def _removed(pipeline: Pipeline, from_stage: str) -> Manifest:
    """Return the manifest of the stages before one, after removing what it and those after it left."""
    names = [stage.name for stage in pipeline.stages]
    kept = names[: names.index(from_stage)]
    # Of one that is damaged nothing need be known when all begins again.
    manifest = (read_manifest(pipeline.folder) if kept else None) or Manifest()
    after = [name for name in manifest.stages if name not in kept]
    # The last first: whenever this is killed, what is left is a pipeline whose last stages are missing.
    for name in reversed([*names[len(kept) :], *(name for name in after if name not in names)]):
        folder = pipeline.folder / name
        if folder.is_symlink():
            folder.unlink()
        elif folder.is_dir():
            delete_checkpoint(folder)
        (pipeline.folder / f"{name}.yaml").unlink(missing_ok=True)
        manifest.evaluations.pop(name, None)
    for name in after:
        del manifest.stages[name]
    manifest.write(pipeline.folder)
    return manifest
