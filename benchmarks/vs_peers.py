"""AP after the same time on the same images: detrkit against torchvision, transformers and rfdetr.

python benchmarks/vs_peers.py train MODEL --data DIR --images 205 --minutes 8 --chunk 3.5 --runs runs/vs_peers
python benchmarks/vs_peers.py score --data DIR --runs runs/vs_peers --out docs/results/vs_peers_cpu.json
python benchmarks/vs_peers.py list

DIR is the blood-cells set (COCO folder; 205 training images, lists of 51 in splits/ or beside this file). `train` runs
one model until its minutes are over: the time counts from the first line of the training to its last step, building,
reading and saving included, summed over calls; --chunk ends a call after so many minutes, and the same call goes on.
Each model is trained as its own documentation says (benchmarks/peers.py); where that speaks of epochs, the schedule is
laid over the time. `score` exports the detections of every finished run and scores them all with detrkit's COCO
protocol. Two threads. What a package cannot do here (not installed, weights that come from the network) is said.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import platform
import random
import resource
import signal
import sys
import time
from pathlib import Path
from typing import Any

PARTS = {205: None, 51: "train_25pct_seed0.txt"}
# our models: title, weights, overrides of what `detrkit train --data` chooses
OURS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "dape_lite0": ("detrkit dape_lite0, as train --data --minutes chooses", "ImageNet", {}),
    "dape_lite0_random": ("the same", "random", {"model.pretrained_backbone": False, "model.backbone_weights": None}),
    "dela_conditional_lite0": (
        "detrkit dela_conditional_detr_lite0, as chosen",
        "ImageNet",
        {"model.name": "dela_conditional_detr_lite0"},
    ),
}


def part_of(data: Path, images: int, folder: Path) -> Path:
    """The COCO file of the training images, all or those of a list."""
    whole = data / "annotations" / "instances_train.json"
    listed = PARTS[images]
    if listed is None:
        return whole.resolve()
    content = json.loads(whole.read_text())
    lists = data / "splits" if (data / "splits").is_dir() else Path(__file__).parent / "splits" / "blood_cells"
    wanted = set((lists / listed).read_text().split())
    content["images"] = [row for row in content["images"] if row["file_name"] in wanted]
    ids = {row["id"] for row in content["images"]}
    content["annotations"] = [row for row in content["annotations"] if row["image_id"] in ids]
    path = folder / f"train_{images}.json"
    path.write_text(json.dumps(content))
    return path.resolve()


def memory() -> float:
    """Largest resident set of this process so far, in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


# ---------------------------------------------------------------------------------------------------------------- ours


def our_recipe(name: str, args: argparse.Namespace, folder: Path) -> Any:
    """What ``detrkit train --data DIR --minutes M`` runs, without evaluations in between."""
    from detrkit.training import auto_recipe

    return auto_recipe(
        args.data,
        {
            "training.minutes": args.minutes,
            "training.evaluate_every": 0,
            "training.workers": 0,
            "training.seed": args.seed,
            "training.output": str(folder / "run"),
            "training.checkpoint_every": 50,
            "data.train.annotations": str(part_of(args.data, args.images, folder)),
            "data.train.images": str((args.data / "images" / "train").resolve()),
            "logging.plots": False,
            **OURS[name][2],
            **{word.partition("=")[0]: json.loads(word.partition("=")[2]) for word in args.set},
        },
    )


def train_ours(name: str, args: argparse.Namespace, folder: Path) -> bool:
    """Train until the minutes or the chunk are over; whether the minutes are."""
    import detrkit
    from detrkit.training import Callback
    from detrkit.training.interrupt import Interrupted

    end = time.monotonic() + 60 * args.chunk
    notes: dict[str, Any] = {}

    class Stop(Callback):
        def on_step(self, trainer: Any, step: Any) -> None:
            notes.update(steps=step.number, seconds=trainer.clock.seconds)
            if time.monotonic() > end:
                os.kill(os.getpid(), signal.SIGINT)

    recipe = our_recipe(name, args, folder)
    try:
        detrkit.train(recipe, resume=True, callbacks=[Stop()])
        done = True
    except Interrupted:
        done = False
    side = f"{recipe.data.eval_short_side} px" if recipe.data.eval_short_side else ""
    note(folder, done=done, how=f"AdamW {recipe.optimizer.lr:g}, cosine, {side}", **notes)
    return done


def found_by_ours(folder: Path, data: Path) -> list[dict[str, Any]]:
    """Detections of a run of ours in the validation images, as COCO results."""
    from detrkit.config import load_recipe
    from detrkit.evaluation.split_detections import detect_split

    recipe = load_recipe(folder / "run", {"data.root": str(data)})
    return [dict(row) for row in detect_split(folder / "run" / "last" / "model.safetensors", recipe).rows]


# -------------------------------------------------------------------------------------------------------------- others


def read_split(file: Path, images: Path) -> list[tuple[int, Any, Any, Any]]:
    """Id, image, boxes (N, 4) xyxy and labels (N,) from 0 of every image of a COCO file."""
    import torch
    from PIL import Image

    content = json.loads(file.read_text())
    place = {row["id"]: k for k, row in enumerate(content["categories"])}
    rows: dict[int, list[Any]] = {image["id"]: [] for image in content["images"]}
    for row in content["annotations"]:
        rows[row["image_id"]].append(row)
    found = []
    for image in content["images"]:
        boxes = torch.tensor([row["bbox"] for row in rows[image["id"]]], dtype=torch.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        labels = torch.tensor([place[row["category_id"]] for row in rows[image["id"]]], dtype=torch.int64)
        with Image.open(images / image["file_name"]) as opened:
            found.append((image["id"], opened.convert("RGB"), boxes, labels))
    return found


def train_peer(name: str, args: argparse.Namespace, folder: Path) -> bool:
    """Train until the minutes or the chunk are over; whether the minutes are."""
    import torch
    from peers import PEERS

    begun = time.monotonic()
    peer = PEERS[name]
    torch.manual_seed(args.seed)
    data = read_split(part_of(args.data, args.images, folder), args.data / "images" / "train")
    model = peer.build(len(categories(args.data)))
    optimizer = peer.optimizer(model)
    averaged = None if peer.ema is None else copy.deepcopy(model)
    kept = folder / "state.pt"
    step, spent = 0, 0.0
    if kept.is_file():
        state = torch.load(kept, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        step, spent = state["step"], state["seconds"]
        if averaged is not None:
            averaged.load_state_dict(state["averaged"])
    rates = [group["lr"] for group in optimizer.param_groups] if step == 0 else state["rates"]
    budget, order = 60 * args.minutes, []
    model.train()
    while spent + time.monotonic() - begun < budget and time.monotonic() - begun < 60 * args.chunk:
        random.seed(f"{args.seed} {step}")
        if len(order) < peer.batch:
            order = random.sample(range(len(data)), len(data))
        batch = [data[order.pop()] for _ in range(peer.batch)]
        examples = [peer.prepare(image, boxes, labels, augment=True) for _, image, boxes, labels in batch]
        factor = peer.factor((spent + time.monotonic() - begun) / budget, step)
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * factor
        loss = peer.loss(model, examples)
        if not torch.isfinite(loss):
            sys.exit(f"{name}: loss is {loss.item()} after {step} steps")
        optimizer.zero_grad()
        loss.backward()
        if peer.clip is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), peer.clip)
        optimizer.step()
        step += 1
        if averaged is not None and peer.ema is not None:
            decay = peer.ema * (1 - torch.exp(torch.tensor(-step / 100)).item())  # rfdetr's ema_tau
            for mean, value in zip(averaged.state_dict().values(), model.state_dict().values(), strict=True):
                if mean.is_floating_point():
                    mean.lerp_(value, 1 - decay)
        if step % 20 == 0:
            print(f"{name}: step {step}, loss {loss.item():.3f}", file=sys.stderr, flush=True)
    content = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "rates": rates, "step": step}
    content["averaged"] = None if averaged is None else averaged.state_dict()
    torch.save({**content, "seconds": spent + time.monotonic() - begun}, kept)
    spent += time.monotonic() - begun
    note(folder, done=spent >= budget, how=peer.how, steps=step, seconds=spent)
    return spent >= budget


def found_by_peer(name: str, folder: Path, data: Path) -> list[dict[str, Any]]:
    """Detections of another package's run in the validation images, as COCO results."""
    import torch
    from peers import PEERS

    peer, ids = PEERS[name], categories(data)
    model = peer.build(len(ids))
    state = torch.load(folder / "state.pt", weights_only=True)
    model.load_state_dict(state["averaged"] or state["model"])
    model.eval()
    rows = []
    for image_id, image, boxes, labels in read_split(
        data / "annotations" / "instances_val.json", data / "images" / "val"
    ):
        with torch.inference_mode():
            found = peer.detect(model, peer.prepare(image, boxes, labels, augment=False))
        for (left, top, right, bottom), score, label in zip(*(part.tolist() for part in found), strict=True):
            if label < len(ids):
                box = [left, top, right - left, bottom - top]
                rows.append({"image_id": image_id, "category_id": ids[label], "bbox": box, "score": score})
    return rows


def categories(data: Path) -> list[int]:
    """Ids of the classes."""
    return [row["id"] for row in json.loads((data / "annotations" / "instances_train.json").read_text())["categories"]]


# ------------------------------------------------------------------------------------------------------------ commands


def note(folder: Path, **values: Any) -> None:
    """Add to what is known about a run; memory is the largest of its calls."""
    path = folder / "run.json"
    known = json.loads(path.read_text()) if path.is_file() else {}
    known |= values
    known["memory_gb"] = round(max(known.get("memory_gb", 0.0), memory()), 2)
    path.write_text(json.dumps(known, indent=1))


def described(name: str) -> tuple[str, str]:
    """Title and initial weights of a model."""
    if name in OURS:
        return OURS[name][:2]
    from peers import PEERS

    return PEERS[name].title, PEERS[name].weights


def train(args: argparse.Namespace) -> None:
    """One call of a training."""
    import torch

    torch.set_num_threads(args.threads)
    folder = args.runs / f"{args.model}{args.label}_{args.images}_{args.minutes:g}min_seed{args.seed}"
    folder.mkdir(parents=True, exist_ok=True)
    title, weights = described(args.model)
    title += f" {' '.join(args.set)}" if args.set else ""
    note(folder, model=args.model, title=title, weights=weights, images=args.images, minutes=args.minutes)
    note(folder, threads=args.threads, seed=args.seed)
    done = (train_ours if args.model in OURS else train_peer)(args.model, args, folder)
    print(f"{folder.name}: {'done' if done else 'not done, the same call goes on'}")


def score(args: argparse.Namespace) -> None:
    """Score every finished run that this interpreter can open, and write all that are scored."""
    import torch

    import detrkit

    torch.set_num_threads(args.threads)
    truth = args.data / "annotations" / "instances_val.json"
    rows = []
    for path in sorted(args.runs.glob("*/run.json")):
        run = json.loads(path.read_text())
        if run.get("done") and "AP" not in run and missing(run["model"]) is None:
            ours = run["model"] in OURS
            found = (
                found_by_ours(path.parent, args.data) if ours else found_by_peer(run["model"], path.parent, args.data)
            )
            values = detrkit.score_coco(truth, found).metrics if found else {}
            note(path.parent, AP=values.get("AP", 0.0), AP50=values.get("AP50", 0.0))
            run = json.loads(path.read_text()) | {"memory_gb": run["memory_gb"]}  # of the training
            path.write_text(json.dumps(run, indent=1))
        if "AP" in run:
            rows.append(run)
            print(f"{run['AP']:.3f} {run['AP50']:.3f} {run['steps']:>5} steps {run['memory_gb']:.2f} GB  {path.parent}")
    if args.out is not None:
        from data_efficiency import device_name

        skipped = {name: reason for name in models() if (reason := missing(name)) is not None}
        skipped = {name: why for name, why in skipped.items() if not any(row["model"] == name for row in rows)}
        rows.sort(key=lambda row: (-row["images"], row["minutes"], -row["AP"]))
        content = {"device": device_name(), "machine": platform.machine(), "torch": torch.__version__}
        args.out.write_text(json.dumps({**content, "remark": args.remark, "skipped": skipped, "rows": rows}, indent=1))


def models() -> list[str]:
    """All names."""
    from peers import PEERS

    return [*OURS, *PEERS]


def missing(name: str) -> str | None:
    """Why a model cannot be trained here."""
    from peers import PEERS

    return None if name in OURS else PEERS[name].missing()


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    trainer = commands.add_parser("train")
    trainer.add_argument("model")
    trainer.add_argument("--images", type=int, choices=PARTS, default=205)
    trainer.add_argument("--minutes", type=float, default=10.0)
    trainer.add_argument("--chunk", type=float, default=1e9, help="minutes of this call")
    trainer.add_argument("--seed", type=int, default=0)
    trainer.add_argument("--set", nargs="*", default=[], metavar="KEY=JSON", help="of ours: other settings")
    trainer.add_argument("--label", default="", help="added to the name of the run")
    scorer = commands.add_parser("score")
    scorer.add_argument("--out", type=Path)
    scorer.add_argument("--remark", default="", help="about the machine at the time")
    for command in (trainer, scorer):
        command.add_argument("--data", type=Path, required=True)
        command.add_argument("--threads", type=int, default=2)
        command.add_argument("--runs", type=Path, default=Path("runs/vs_peers"))
    commands.add_parser("list")
    args = parser.parse_args(arguments)
    if args.command == "list":
        for name in models():
            print(f"{name}: {', '.join(described(name))}{' -- ' + reason if (reason := missing(name)) else ''}")
    elif args.command == "score":
        score(args)
    elif args.model not in models():
        parser.error(f"no model {args.model}; known: {', '.join(models())}")
    elif (reason := missing(args.model)) is not None:
        print(f"{args.model} is left out: {reason}")
    else:
        train(args)


if __name__ == "__main__":
    main()
