"""The folder of a run: its path, its lock, and the checks before a run starts or resumes in it."""

from __future__ import annotations

import contextlib
import glob
import itertools
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from filelock import FileLock, Timeout

from detrkit.config import Recipe, load_recipe
from detrkit.errors import RecipeError, RunError, first_few
from detrkit.files import remove_drafts, replacing
from detrkit.training.checkpoint import RunState, load_state, saving_failed
from detrkit.training.loggers import Logger, build_loggers
from detrkit.training.pictures import PICTURES

__all__ = ["find_run", "locked", "open_folder", "refuse_other_length", "run_folder", "start_folder"]

_RUN_FILES = (
    *("last", "last.new", "best", "log.jsonl", "recipe.yaml", "tensorboard", "wandb_id", "metrics.csv"),
    *("facts.json", "report.html"),
    *PICTURES,
)


def run_folder(recipe: Recipe) -> Path:
    """The folder of a run: ``training.output``, or ``runs/<recipe or model name>-<data name>``."""
    if recipe.training.output is not None:
        return Path(recipe.training.output)
    source = Path(recipe.source)
    name = source.stem if source.suffix in (".yaml", ".yml") and source.name != "recipe.yaml" else recipe.model.name
    data = Path(recipe.data.root).resolve()
    return Path("runs") / f"{name}-{(data.parent if data.is_file() else data).name}"  # data may be a data.yaml


def find_run(given: Mapping[str, object]) -> tuple[Path, Path] | None:
    """(run folder, its recipe file) of the run to resume; None where there is none.

    Without ``training.output`` the run is searched below ``runs/``: the only one on this data, and of this model if
    ``given`` has one. The model is not chosen again, because the cache may have changed since.

    Args:
        given: dotted recipe keys and values of the command line.

    Raises:
        RecipeError: several runs match, or the run has several seeds and they are not given.
    """
    root, output, seeds = Path(str(given["data.root"])), given.get("training.output"), given.get("training.seeds")
    candidates = Path("runs").glob(f"*-{glob.escape(root.resolve().name)}")
    found: list[tuple[Path, Path]] = []
    for folder in [Path(str(output))] if output else sorted(candidates):
        files = sorted(folder.glob("seed*/recipe.yaml"))
        if not seeds:
            files = [*folder.glob("recipe.yaml"), *files]
        if files and (output or _same_run(files[0], root, given.get("model.name"))):
            found.append((folder, files[0]))
    if not found:
        return None
    folder, file = found[0]
    if len(found) > 1:
        folders = ", ".join(str(folder) for folder, _ in found)
        raise RecipeError(f"--resume: several runs use {root}: {folders}; --output DIR chooses one")
    if not seeds and file.parent != folder:
        names = ",".join(path.parent.name.removeprefix("seed") for path in sorted(folder.glob("seed*/recipe.yaml")))
        raise RecipeError(f"--resume: {folder} holds one run per seed; give them: --seeds {names}")
    return folder, file


def _same_run(file: Path, root: Path, model: object) -> bool:
    recipe = load_recipe(file)
    return Path(recipe.data.root).resolve() == root.resolve() and model in (None, recipe.model.name)


def refuse_other_length(folder: Path, recipe: Recipe) -> None:
    """Of runs that are compared with one another none goes on for longer, or was longer already.

    Raises:
        RecipeError: the folder has a run of another length.
    """
    if not (folder / "recipe.yaml").is_file():
        return
    wanted, begun = recipe.training, load_recipe(folder / "recipe.yaml").training
    keys = ("minutes", "iterations", "epochs")
    key = next((key for key in keys if getattr(wanted, key) is not None), None)
    if key is not None and getattr(wanted, key) != getattr(begun, key):
        raise RecipeError(
            f"{folder}: the run there has training.{key}={getattr(begun, key)}, not {getattr(wanted, key)}"
        )


def open_folder(folder: Path, *, resume: bool, overwrite: bool) -> RunState | None:
    """The state to resume from, or None for a new run. Changes nothing on disk.

    Raises:
        RecipeError: the folder cannot be used for this run.
    """
    if resume:
        state = load_state(folder)
        if state is None and (folder / "best").exists():
            raise RecipeError(f"{folder} has weights in best/ but no last/ to continue from; --overwrite starts again")
        return state
    found = [name for name in _RUN_FILES if (folder / name).exists()]
    if found and not overwrite:
        raise RecipeError(
            f"{folder} holds another run ({first_few(found, 3)}): continue it with --resume, delete it with "
            "--overwrite, or choose another training.output"
        )
    return None


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Create the folder and lock it: a second process would mix the logs and lose checkpoints.

    Afterwards folders that were created and are empty are removed.

    Raises:
        RecipeError: it is a file.
        RunError: another process holds the lock, or the folder cannot be created.
    """
    if folder.exists() and not folder.is_dir():
        raise RecipeError(f"{folder}: the output is a file, not a folder; choose another training.output")
    path = folder / ".lock"
    lock = FileLock(path, timeout=0)
    created = [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as error:
        raise RunError(f"{folder}: another process trains there; stop it, or choose another training.output") from error
    except NotImplementedError:  # a file system without locks
        yield
        return
    except OSError as error:
        raise saving_failed(error, folder) from error
    try:
        yield
    finally:
        lock.release()
        path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # not empty
            for place in created:
                place.rmdir()


def start_folder(folder: Path, recipe: Recipe, *, resumed: bool) -> list[Logger]:
    """Delete the files of an earlier run unless resumed, and what a killed process left; write ``recipe.yaml`` and open
    the loggers.

    Raises:
        RunError: a file cannot be written.
    """
    try:
        shutil.rmtree(folder / "last.new", ignore_errors=True)
        for place in (folder, folder / "best", folder / "last"):
            remove_drafts(place)
        if not resumed:
            for name in _RUN_FILES:
                path = folder / name
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)
        kept = folder / "recipe.yaml"
        comments = _comments(kept) if resumed and not recipe.comments else ""
        with replacing(kept) as draft:
            draft.write_text(comments + recipe.to_yaml(), encoding="utf-8")
        return build_loggers(folder, recipe)
    except OSError as error:
        raise saving_failed(error, folder) from error


def _comments(path: Path) -> str:
    """The comment lines at the beginning of a recipe file."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.is_file() else []
    return "".join(itertools.takewhile(lambda line: line.startswith("#"), lines))
