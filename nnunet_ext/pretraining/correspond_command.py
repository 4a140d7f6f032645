"""`nnunet-ext correspond`: the same anatomical points in many cases, for pairs of views of two patients."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from nnunet_ext.cores import limit_torch_threads, usable_cores
from nnunet_ext.errors import UserError

KINDS = ("auto", "overlap", "bodybox", "affine", "embedding")
EMBEDDING_FILE = "embedding.pth"
DEFAULT_STEPS = 20_000
MOST_WORKERS = 4  # threads that cut views for a training on another device than the CPU


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments; imports neither torch nor nnU-Net."""
    parser.epilog = (
        "Writes landmarks_KIND.npz, .json and .png into nnUNet_preprocessed/DATASET/nnunet_ext_pretraining/"
        "PLANS__CONFIGURATION; nnunet-ext pretrain draws its pairs from there. The same command goes on where it was "
        "interrupted. Points are kept in patient coordinates, so images may be stored in any orientation."
    )
    parser.add_argument("-d", dest="dataset", required=True, metavar="DATASET", help="name or number")
    parser.add_argument("-c", dest="configuration", default="3d_fullres", help="default: %(default)s")
    parser.add_argument("-p", dest="plans", default="nnUNetPlans", help="default: %(default)s")
    parser.add_argument(
        "--unlabelled", type=Path, nargs="+", default=[], metavar="FOLDER", help="more images, without labels"
    )
    parser.add_argument(
        "--kind",
        choices=KINDS,
        default="auto",
        help="how points are found; auto: embedding where there is one, overlap below 8 cases, bodybox for crops of "
        "one organ, else affine (default: auto)",
    )
    parser.add_argument("--points", type=int, default=64, metavar="K", help="in each case (default: 64)")
    parser.add_argument("--reference", metavar="CASE", help="default: the case of median body height")
    parser.add_argument(
        "--threshold",
        type=float,
        help="least score of accepted points; default: correlation 0.3, cosine 0.7, for an embedding of your own the "
        "20th percentile of its scores in the quality check",
    )
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--weights", type=Path, metavar="FILE", help="embedding: SAM.pth, or one trained here")
    source.add_argument(
        "--train-embedding",
        type=int,
        nargs="?",
        const=DEFAULT_STEPS,
        metavar="STEPS",
        help=f"train an embedding on these cases first (default: {DEFAULT_STEPS} steps); it goes on where it stopped",
    )
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    parser.add_argument("-np", dest="processes", type=int, help="cases worked on at the same time; default: the cores")
    parser.add_argument("-device", choices=("cpu", "cuda", "mps"), help="of the embedding; default: cuda, if any")
    parser.add_argument("--json", action="store_true", help="for scripts: print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Make the table, print what came out, write report and picture; 1 if cases failed, else 0.

    Raises:
        UserError: arguments that cannot work.
    """
    if args.seed < 0 or (args.processes is not None and args.processes < 1):
        raise UserError(f"--seed must be at least 0 and -np at least 1; got {args.seed}, {args.processes}")
    if args.kind not in ("auto", "embedding") and (args.weights or args.train_embedding):
        raise UserError(f"--weights and --train-embedding are for --kind embedding, not for {args.kind}")
    from nnunet_ext.pretraining import landmark_report as report
    from nnunet_ext.pretraining.corresponding import auto_kind, make_table
    from nnunet_ext.pretraining.landmark_assembly import Options
    from nnunet_ext.pretraining.landmarks import table_path
    from nnunet_ext.pretraining.preparing import open_pool
    from nnunet_ext.whole_files import write_whole

    processes = args.processes or usable_cores()
    pool = open_pool(args.dataset, args.plans, args.configuration, args.unlabelled, processes=processes)
    weights = _weights(args, pool)
    kind = auto_kind(pool, weights is not None) if args.kind == "auto" else args.kind
    device = _device(args) if kind == "embedding" else "cpu"
    options = Options(
        kind=kind,
        points=args.points,
        reference=args.reference,
        threshold=args.threshold,
        seed=args.seed,
        processes=processes,
        weights=weights if kind == "embedding" else None,
        device=device,
    )
    found = make_table(pool, options, _bar)
    path = table_path(pool.folder, kind)
    content = json.dumps(report.as_data(found), indent=2)
    write_whole(path.with_suffix(".json"), f"{content}\n")
    drawn = report.draw(path.with_suffix(".png"), pool, found, args.seed)
    failed = {**dict(pool.left_out), **found.failed}
    if args.json:
        print(content)
    else:
        told = report.lines(found)
        told += [f"earlier    {found.earlier} case(s) were finished by an earlier run"] if found.earlier else []
        told += [f"written    {path}, .json{', .png' if drawn else ''}"]
        print("\n".join(told))
    for words in [report.advice(found), *(f"failed  {name}: {reason}" for name, reason in sorted(failed.items()))]:
        if words:
            print(words, file=sys.stderr)
    return int(bool(failed))


def _device(args: argparse.Namespace) -> str:
    """Where the embedding is computed; on a CPU with no more threads than this process may use."""
    from nnunet_ext.inference.device import chosen_device

    device = str(chosen_device(args.device))
    if device == "cpu":
        limit_torch_threads()
    return device


def _weights(args: argparse.Namespace, pool: Any) -> Path | None:
    """The embedding's file: the one given, the one trained now, or the pool's own that was trained before."""
    own: Path = pool.folder / EMBEDDING_FILE
    if args.weights is not None:
        if not args.weights.is_file():
            raise UserError(f"--weights {args.weights}: there is no such file")
        return Path(args.weights)
    if args.train_embedding is None:
        return own if args.kind in ("auto", "embedding") and _is_trained(own, args.kind) else None
    if args.train_embedding < 1:
        raise UserError(f"--train-embedding must be at least 1 step; got {args.train_embedding}")
    import torch

    from nnunet_ext.pretraining.embedding_training import train

    device = torch.device(_device(args))
    workers = 0 if device.type == "cpu" else min(MOST_WORKERS, args.processes or usable_cores())
    trained = train(pool, own, args.train_embedding, args.seed, device, proceed=True, workers=workers)
    print(f"embedding  {trained.quality.summary()}", file=sys.stderr)
    return own


def _is_trained(own: Path, kind: str) -> bool:
    """Whether there is an embedding whose training came to its end, and with "auto" a good one.

    Raises:
        UserError: it is asked for, and its training did not come to its end.
    """
    if not own.is_file():
        return False
    from nnunet_ext.pretraining.embedding_file import read_embedding_file
    from nnunet_ext.pretraining.embedding_quality import Quality

    content = read_embedding_file(own)
    if content.step >= content.steps:
        quality = Quality(**content.quality) if content.quality else None
        if quality is None or not quality.poor:
            return True
        print(f"{'not used: ' if kind == 'auto' else ''}{own}: {quality.summary()}", file=sys.stderr)
        return kind != "auto"
    words = (
        f"{own}: its training was interrupted after {content.step} of {content.steps} steps; go on with "
        f"--train-embedding {content.steps} --seed {content.seed}"
    )
    if kind == "embedding":
        raise UserError(words)
    print(f"not used: {words}", file=sys.stderr)
    return False


def _bar(words: str) -> Callable[[Iterable[Any], int], Iterable[Any]]:
    from tqdm import tqdm

    def progress(stream: Iterable[Any], total: int) -> Iterable[Any]:
        bar: Iterable[Any] = tqdm(stream, total=total, desc=words, unit="case")
        return bar

    return progress
