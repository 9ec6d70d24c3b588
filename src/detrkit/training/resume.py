"""Continuing a run: the run folder, not the recipe on the command line, says what the run is.

* Weights come from ``last/``, so ``model.init`` and backbone weights are read when a run begins and never again.
* What the recipe leaves open (length, epochs at which the rate drops) stays as the run began.
* A run may be made longer or shorter. Drops in epochs stay where they were. A cosine ends at the new end, so that its
  rate differs from that of the begun run in every further step. A line says so.
* Classes and images must be those of the run; changed annotations of the same images are announced, and so are other
  validation images, which change no weight.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from detrkit.config import Recipe, load_recipe
from detrkit.errors import CheckpointError, DataError, RecipeError
from detrkit.models import Detector
from detrkit.terminal import say
from detrkit.training.best import Best
from detrkit.training.checkpoint import MODEL, RunState
from detrkit.training.fingerprint import Fingerprint, changed_annotations, changed_classes, changed_images
from detrkit.training.schedule import build_schedule, length_in_steps
from detrkit.weights import load, verify

__all__ = [
    "as_begun",
    "check_agreement",
    "check_network",
    "kept_best",
    "length_remark",
    "validation_remark",
    "without_start",
]

# Keys that may differ in a resumed run: where things lie, and what does not change its numbers. Annotation files and
# images may lie elsewhere or have another layout, because the images are compared themselves.
_CHANGEABLE = {
    *("training.output", "training.workers", "training.device", "training.evaluate_every", "training.checkpoint_every"),
    *("training.seeds", "training.patience", "training.epochs", "training.iterations"),
    *("training.minutes", "training.compile"),
    *("data.root", "data.format", "data.on_error"),
    *("data.train.annotations", "data.train.images", "data.val.annotations", "data.val.images"),
}
_START = ("pretrained_backbone", "backbone_weights", "init")


def as_begun(recipe: Recipe, state: RunState) -> Recipe:
    """The recipe with the start of the begun run, and with its length and drops where the recipe leaves them open."""
    begun = load_recipe(state["recipe"])
    model = {key: getattr(begun.model, key) for key in _START}
    training: dict[str, object] = {}
    schedule: dict[str, object] = {}
    if recipe.training.epochs is None and recipe.training.iterations is None:
        training = {"epochs": begun.training.epochs, "iterations": begun.training.iterations}
        if recipe.training.minutes is None:
            training["minutes"] = begun.training.minutes
    if recipe.training.auto_batch:  # measured once, when the run began
        training |= {"batch_size": begun.training.batch_size, "accumulate": begun.training.accumulate}
    if recipe.schedule.drop is None and recipe.schedule.kind == begun.schedule.kind:
        schedule = {"drop": begun.schedule.drop}
    return recipe.updated(model=model, training=training, schedule=schedule)


def without_start(recipe: Recipe) -> Recipe:
    """The recipe of a model whose weights are read from ``last/``: it starts from no file."""
    return recipe.updated(model={"pretrained_backbone": False, "backbone_weights": None, "init": None})


def check_agreement(
    recipe: Recipe, state: RunState, folder: Path, *, processes: int, batches: int, data: Fingerprint
) -> None:
    """Check that a run can be resumed with this recipe and data; changed annotations are announced.

    Raises:
        RecipeError: a key or the number of processes differs.
        DataError: the classes or the training images differ.
    """
    old, new = load_recipe(state["recipe"]).flat(), recipe.flat()
    said = {key.removeprefix("model.") for key in new.keys() - old.keys() if key.startswith("model.")}
    if said:  # an option that the begun recipe left open may be said as it was: its default may be another one since
        built = _as_built(folder)
        old |= {f"model.{key}": built[key] for key in said & built.keys()}
    differences = [
        f"{key}: {old.get(key)} there, {new.get(key)} here"
        for key in sorted(old.keys() | new.keys())
        if key not in _CHANGEABLE and not key.startswith("logging.") and old.get(key) != new.get(key)
    ]
    if state["processes"] != processes:
        differences.append(f"processes: {state['processes']} there, {processes} here")
    if differences:
        raise RecipeError(f"{folder} cannot be resumed with this recipe: {'; '.join(differences)}")
    then = state.get("data")  # states of version 0.1 have none
    changes = [] if then is None else [changed_classes(then, data), changed_images(then, data)]
    if state["batches"] != batches:
        changes.append(f"an epoch had {state['batches']} batches and now has {batches}")
    if any(changes):
        raise DataError(
            f"{folder} cannot be resumed, the training data in {recipe.data.root} have changed: "
            f"{'; '.join(filter(None, changes))}. Give it the data it began with, or start a new run from its weights: "
            f"model.init={folder} and another --output"
        )
    if then is not None and (changed := changed_annotations(then, data)):
        say(
            f"the annotations of {len(changed)} training images have changed since the run began (image id "
            f"{changed[0]} first): the run goes on with the new ones"
        )


def check_network(model: Detector, weights: Mapping[str, Tensor], folder: Path) -> None:
    """Check that the network of the recipe has the weights of the begun run.

    Raises:
        RecipeError: it has others: an option that the recipe leaves open had another default when the run began.
    """
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    if shapes == {name: tensor.shape for name, tensor in weights.items()}:
        return
    begun, now = _as_built(folder), model.config.flat()
    other = [key for key in sorted(now) if key in begun and begun[key] != now[key]]
    differences = "; ".join(f"model.{key}: {begun[key]} there, {now[key]} here" for key in other)
    advice = " ".join(f"model.{key}={begun[key]}" for key in other)
    raise RecipeError(
        f"{folder} cannot be resumed, its network is another one: {differences or 'other weights'}. Options that a "
        f"recipe leaves open may have another default since; give them: {advice or 'as the run began'}"
    )


def _as_built(folder: Path) -> dict[str, Any]:
    """Every option of the network that a run began with."""
    return load(folder / "last" / MODEL).config.flat()


def validation_remark(state: RunState, now: Fingerprint, folder: Path) -> str:
    """What other validation images than those of the begun run mean for its scores; empty where they are the same."""
    then = state.get("validation")  # states of version 0.1 have none
    if then is None:
        return ""
    changed = changed_images(_sorted(then), _sorted(now), "validation")
    if not changed and (other := changed_annotations(then, now)):
        changed = f"the annotations of {len(other)} validation images have changed (image id {other[0]} first)"
    if not changed:
        return ""
    return (
        f"{changed} since the run began: scores from here on cannot be compared with those before, by which "
        f"{folder / 'best'} was chosen. Give it the validation data it began with, or compare best/ and last/ at the "
        "end: detrkit eval"
    )


def _sorted(data: Fingerprint) -> Fingerprint:
    """In the order of the ids: the order of validation images changes no score."""
    return {"classes": data["classes"], "images": data["images"][data["images"][:, 0].argsort()]}


def length_remark(recipe: Recipe, state: RunState, *, batches: int) -> str:
    """What another length than that of the begun run does to the learning rate; empty where it is the same."""
    begun = load_recipe(state["recipe"])
    if recipe.training.minutes is not None:
        return ""  # as many steps as there is time for
    then, now = (length_in_steps(one.training, batches=batches) for one in (begun, recipe))
    if then == now:
        return ""
    remark = f"{now} optimizer steps instead of {then}"
    if recipe.schedule.kind in ("step", "multistep"):
        drops = ", ".join(f"{epoch:g}" for epoch in recipe.schedule.drop or ())
        return f"{remark}: the learning rate drops after epoch {drops}, as the run began"
    if recipe.schedule.kind == "cosine":
        step = state["position"]["step"]
        old, new = (
            build_schedule(recipe.schedule, steps_per_epoch=1, total_steps=total)(step) for total in (then, now)
        )
        return (
            f"{remark}: the cosine now ends there, so the learning rate goes on at {new:.3g} of its maximum instead "
            f"of {old:.3g}"
        )
    return remark


def kept_best(state: RunState, folder: Path) -> Best:
    """The best evaluation of the begun run; none where its weights in ``best/`` are gone or damaged, which is said."""
    best = Best.from_state(state["best"])
    if best.epoch is None:
        return best
    try:
        verify(folder / "best" / MODEL)
    except CheckpointError as error:
        say(f"{error}; the next evaluation counts as the best")
        return Best()
    return best
