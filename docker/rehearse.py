"""Execute the steps of a Dockerfile without Docker: in a fresh virtual environment and a folder in place of the root.

    python docker/rehearse.py docker/Dockerfile.cpu /tmp/rehearsal

COPY copies, RUN runs with the fresh environment's Python first on the path, ENV and ARG set variables, WORKDIR makes
its folder; paths from the root are those below the folder. Accounts (useradd, chown) are left out: the user and the
base image are what a rehearsal does not show.
"""

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import venv
from dataclasses import dataclass, field
from pathlib import Path

CONTEXT = Path(__file__).resolve().parents[1]
_ACCOUNTS = ("useradd", "chown")


def instructions(dockerfile):
    """(keyword, rest) of every instruction."""
    text = "\n".join(line for line in dockerfile.read_text(encoding="utf-8").splitlines() if not line.startswith("#"))
    for line in text.replace("\\\n", " ").splitlines():
        if line.strip():
            keyword, _, rest = line.strip().partition(" ")
            yield keyword.upper(), rest.strip()


@dataclass
class Rehearsal:
    """The state after the steps: where they ran, with which variables, and what the image would start."""

    root: Path
    folder: Path
    variables: dict = field(default_factory=dict)
    start: list = field(default_factory=list)
    health: list = field(default_factory=list)

    def inside(self, path):
        """A path of the image below the folder of the rehearsal."""
        return (self.root / path.lstrip("/")) if path.startswith("/") else self.folder / path

    def environment(self):
        """Variables for commands: this machine's, then those of the image, the fresh environment first on the path."""
        own = {
            name: str(self.inside(value)) if value.startswith("/") else value for name, value in self.variables.items()
        }
        left_out = {"PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"}
        base = {name: value for name, value in os.environ.items() if name not in left_out}
        return {**base, **own, "PATH": f"{self.root / 'venv' / 'bin'}{os.pathsep}{os.environ['PATH']}"}

    def step(self, keyword, rest):
        if keyword == "WORKDIR":
            self.folder = self.inside(rest)
            self.folder.mkdir(parents=True, exist_ok=True)
        elif keyword in ("ENV", "ARG"):
            self.variables.update(word.partition("=")[::2] for word in shlex.split(rest))
        elif keyword == "COPY":
            self._copy(rest.split())
        elif keyword == "RUN":
            commands = [part for part in rest.split(" && ") if part.split()[0] not in _ACCOUNTS]
            moved = re.sub(r"(?<=\s)/(?=[a-z])", f"{self.root}/", " && ".join(commands))
            if moved:
                subprocess.run(["bash", "-euc", moved], cwd=self.folder, env=self.environment(), check=True)
        elif keyword == "HEALTHCHECK":
            self.health = json.loads(rest.partition("CMD ")[2])
        elif keyword in ("ENTRYPOINT", "CMD"):
            self.start += json.loads(rest)

    def _copy(self, words):
        *sources, target = words
        for source in sources:
            place = self.inside(target)
            if (CONTEXT / source).is_dir():
                shutil.copytree(CONTEXT / source, place, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                place = place / Path(source).name if target.endswith("/") else place
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(CONTEXT / source, place)


def rehearse(dockerfile, root):
    """Execute all steps; returns the state after them."""
    root = Path(root).resolve()
    root.mkdir(parents=True, exist_ok=True)
    venv.create(root / "venv", with_pip=True, clear=True)
    state = Rehearsal(root=root, folder=root)
    for keyword, rest in instructions(Path(dockerfile)):
        print(f"{keyword} {rest}"[:120], file=sys.stderr, flush=True)
        state.step(keyword, rest)
    return state


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dockerfile", type=Path)
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    done = rehearse(options.dockerfile, options.folder)
    print(f"cd {done.folder} && PATH={done.root / 'venv' / 'bin'}:$PATH {shlex.join(done.start)}")
