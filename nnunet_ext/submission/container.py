"""A Dockerfile and entry script around a trained model, for challenges that run containers (AMOS22, FLARE22)."""

from __future__ import annotations

import contextlib
import platform
import re
import shlex
import shutil
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from nnunet_ext.errors import UserError
from nnunet_ext.submission import predict
from nnunet_ext.submission.archive import sha256_of, write_json
from nnunet_ext.submission.challenges import Challenge
from nnunet_ext.submission.model_files import Model, find_model
from nnunet_ext.submission.output import Output
from nnunet_ext.submission.servers import challenge_named

_TEMPLATES = Path(__file__).parent / "templates"
_PACKAGE = """\
# The model's trainer and network are nnunet_ext's; nnU-Net finds them in nnUNet_extTrainer.
COPY nnunet_ext /workspace/python/nnunet_ext
ENV PYTHONPATH=/workspace/python nnUNet_extTrainer=/workspace/python/nnunet_ext/_discovery
"""


def write_container(
    challenge: str,
    model: Path | str,
    output: Path | str,
    *,
    folds: Sequence[str] | None = None,
    checkpoint: str = "checkpoint_final.pth",
    light: bool = False,
    overwrite: bool = False,
) -> list[str]:
    """Write a folder that `docker build` makes a container of; all or nothing.

    Args:
        challenge: "amos_ct", "amos_ctmr" or "flare22".
        model: a trained model's folder, TRAINER__PLANS__CONFIGURATION.
        output: the folder.
        folds: which are averaged; None: all that were trained.
        checkpoint: the file's name in each fold.
        light: predict without mirroring, and in steps of 0.7 windows.
        overwrite: replace an earlier container that is as it was written.

    Returns:
        What is in it, one line each.

    Raises:
        UserError: the challenge takes none, the model does not fit, or the folder may not be replaced.
        OSError: the disk is full; nothing was written.
    """
    server = challenge_named(challenge)
    if not server.container:
        raise UserError(f"{server.key} takes no container that could be made here")
    found = find_model(server, Path(model), folds, checkpoint)
    target = Output(output, container=True)
    target.keep_out_of([found.folder])
    target.recover()
    target.check(overwrite)
    with target.workshop() as new:
        lines = _fill(new / "folder", server, found, light)
        write_json(new / "record", {"challenge": server.key, "files": _sums(new / "folder")})
        target.move_in(new, overwrite)
    return lines


def _sums(folder: Path) -> dict[str, dict[str, str]]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): {"sha256": sha256_of(path)} for path in files}


def _fill(folder: Path, challenge: Challenge, model: Model, light: bool) -> list[str]:
    flare = challenge.key == "flare22"
    model.copy(folder / "model")
    if model.needs_package:
        _copy_package(folder / "nnunet_ext")
    torch = _installed("torch")
    fields = {
        "TITLE": challenge.title.partition(",")[0],
        "NNUNET": _installed("nnunetv2"),
        "TRAINER": model.folder.name,
        "PYTHON": ".".join(platform.python_version_tuple()[:2]),
        "TORCH": _torch_line(),
        "EXTRA": _PACKAGE if model.needs_package else "",
        "INPUTS": "/workspace/inputs" if flare else "/input",
        "OUTPUTS": "/workspace/outputs" if flare else "/output",
        "FOLDS": shlex.join(model.folds),
        "CHECKPOINT": shlex.quote(model.checkpoint),
        "OPTIONS": " --light" if light else "",
        "SETTINGS": f"Model: {model.folder.name}, folds {' '.join(model.folds)}, {model.checkpoint}; "
        f"nnunetv2 {_installed('nnunetv2')}, torch {torch}{'; light prediction' if light else ''}.",
    }
    texts = {
        "Dockerfile": _filled("Dockerfile", fields),
        "predict.sh": _filled("predict.sh", fields),
        "predict.py": Path(predict.__file__).read_text(encoding="utf-8"),
        "README.md": _filled("README.flare22.md" if flare else "README.amos.md", fields),
        "requirements.txt": "".join(f"{line}\n" for line in _requirements(model.needs_package)),
        ".dockerignore": "inputs\noutputs\ninput\noutput\n*.tar.gz\n",
    }
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    (folder / "predict.sh").chmod(0o755)
    package = (
        ["nnunet_ext/      this package, as the model's trainer or network is in it"] if model.needs_package else []
    )
    stock = model.needs_package or model.trainer.startswith("nnUNet")
    foreign = (
        f"MISSING: the trainer {model.trainer}, which is neither nnU-Net's nor this package's: add it to the image"
    )
    return [
        "Dockerfile, requirements.txt, predict.sh, predict.py, README.md",
        f"model/           {model.folder.name}, folds {' '.join(model.folds)}",
        *package,
        *([] if stock else [foreign]),
    ]


def _filled(template: str, fields: dict[str, str]) -> str:
    text = (_TEMPLATES / template).read_text(encoding="utf-8")
    return re.sub(r"@([A-Z]+)@", lambda match: fields.get(match[1], match[0]), text)


def _copy_package(target: Path) -> None:
    import nnunet_ext

    source = Path(nnunet_ext.__file__).parent
    passed_over = shutil.ignore_patterns("__pycache__", "*.pyc", "data", "demo", "splits", "templates")
    shutil.copytree(source, target, ignore=passed_over)


def _installed(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError as error:
        raise UserError(f"{name} is not installed here: its version is written into the container") from error


def _torch_line() -> str:
    """The installed torch, and its sister, from where its variant is; one for CPUs becomes PyPI's, which knows GPUs."""
    variant = _installed("torch").partition("+")[2]
    cuda = re.fullmatch(r"cu\d+", variant) is not None
    found = {"torch": _installed("torch")}
    with contextlib.suppress(PackageNotFoundError):
        found["torchvision"] = version("torchvision")
    pinned = " ".join(f"{name}=={number if cuda else number.partition('+')[0]}" for name, number in found.items())
    index = f" --extra-index-url https://download.pytorch.org/whl/{variant}" if cuda else ""
    return f"RUN pip install --no-cache-dir {pinned}{index}"


def _requirements(package: bool) -> list[str]:
    """Pinned: nnU-Net, and what it and this package import; torch and torchvision have a line of their own."""
    names = {"nnunetv2"}
    for owner in ("nnunetv2", "dynamic-network-architectures", "timm", *(("nnunet-ext",) if package else ())):
        with contextlib.suppress(PackageNotFoundError):
            stated = [line for line in requires(owner) or [] if "extra ==" not in line]
            names |= {re.split(r"[^A-Za-z0-9._-]", line)[0].lower() for line in stated}
    pinned = []
    for name in sorted(names - {"torch", "torchvision"}):
        with contextlib.suppress(PackageNotFoundError):  # for another version of Python, say
            pinned.append(f"{name}=={version(name).partition('+')[0]}")
    return pinned
