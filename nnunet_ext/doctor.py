"""``nnunet-ext doctor``: is everything in place for nnU-Net's commands to find our names, and if not, what to do.

Every check is a function that returns findings; none changes anything. Names are checked last, through nnU-Net's own
look-ups.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import os
import pydoc
import site
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from nnunet_ext import lookup, registry, versions
from nnunet_ext.cli import shim_folder

START_UP_FILES = ("nnunet_ext.pth", "nnunet_ext.start")
SOURCE = "CHECKOUT_OR_WHEEL"  # a path: the name nnunet-ext may be somebody else's on a package index
MANUAL_WAY = 'export nnUNet_extTrainer="$(nnunet-ext env)" for trainers, and nnunet-ext plan for planners'


@dataclass(frozen=True)
class Finding:
    """What one check found: ``ok``, ``warn`` (works, with a limit) or ``fail``; and what to do."""

    check: str
    status: Literal["ok", "warn", "fail"]
    message: str
    advice: str = ""


def examine() -> list[Finding]:
    """All findings, in the order in which they should be put right."""
    checks: tuple[Callable[[], list[Finding]], ...] = (
        check_startup,
        check_nnunet_version,
        check_nnunet_origin,
        check_other_nnunets,
        check_external_folders,
        check_torch,
        check_distutils,
        check_names,
        check_folders,
    )
    return [finding for check in checks for finding in check()]


def report(findings: list[Finding]) -> str:
    """The findings as lines for people."""
    lines = []
    for finding in findings:
        lines.append(f"{finding.status:<4}  {finding.check:<12}  {finding.message}")
        if finding.advice:
            lines.append(f"{'':<4}  {'':<12}  -> {finding.advice}")
    counts = {status: sum(f.status == status for f in findings) for status in ("ok", "warn", "fail")}
    lines.append(f"{counts['ok']} ok, {counts['warn']} to look at, {counts['fail']} to put right")
    return "\n".join(lines)


def check_startup() -> list[Finding]:
    """Whether Python ran our start-up file in this process; if not, why not."""
    name = "start-up"
    if lookup.is_installed():
        return [Finding(name, "ok", "active: nnU-Net's commands find our names")]
    disabled = os.environ.get("NNUNET_EXT_DISABLE_STARTUP", "0") not in ("", "0")
    if disabled:
        return [Finding(name, "warn", "switched off by NNUNET_EXT_DISABLE_STARTUP", f"unset it, or use {MANUAL_WAY}")]
    status: Literal["warn", "fail"] = "warn" if _manual_way() else "fail"
    if sys.flags.no_site:
        return [Finding(name, status, "Python was started with -S, which reads no start-up file", f"use {MANUAL_WAY}")]
    folders = _site_folders()
    read = [folder for folder in folders if any((folder / file).is_file() for file in START_UP_FILES)]
    if read:
        message = f"the start-up file in {read[0]} did not take effect"
        return [Finding(name, status, message, f"install it again: pip install --force-reinstall --no-deps {SOURCE}")]
    paths = {Path(entry).resolve() for entry in sys.path if entry} | {Path(__file__).resolve().parents[1]}
    unread = sorted(folder for folder in paths if any((folder / file).is_file() for file in START_UP_FILES))
    advice = f"install it into this environment ({sys.executable} -m pip install {SOURCE}), or use {MANUAL_WAY}"
    if unread:
        where = f"the start-up file is in {unread[0]}, but Python reads such files only in site directories"
        known = ", ".join(map(str, folders)) or "none here"
        why = "not on PYTHONPATH, nor where pip install --target puts it"
        return [Finding(name, status, f"{where} ({known}), {why}", advice)]
    return [Finding(name, status, "there is no start-up file: nnunet_ext was not installed by pip", advice)]


def _site_folders() -> list[Path]:
    folders = list(site.getsitepackages())
    if site.ENABLE_USER_SITE:
        folders.append(site.getusersitepackages())
    return [Path(folder).resolve() for folder in folders]


def _manual_way() -> bool:
    return any(Path(folder).resolve() == shim_folder() for folder in lookup.external_folders())


def check_nnunet_version() -> list[Finding]:
    """Whether nnunetv2 is there, in a tested version."""
    name = "nnunetv2"
    if importlib.util.find_spec("nnunetv2") is None:
        return [Finding(name, "fail", "nnunetv2 is not installed", f"pip install {versions.WANTED!r}")]
    installed = versions.installed_nnunet()
    if installed is None:
        message = "nnunetv2 has no metadata, so its version is unknown"
        return [Finding(name, "warn", message, "install it by pip rather than naming its folder in PYTHONPATH")]
    sentence = versions.problem(installed)
    if sentence is not None:
        found, _, advice = sentence.partition(": ")
        return [Finding(name, "fail", found, advice)]
    return [Finding(name, "ok", f"version {installed} is in the tested range")]


def check_nnunet_origin() -> list[Finding]:
    """Whether the nnunetv2 that Python imports is the one whose version pip states, and not a fork in front of it."""
    name = "origin"
    spec = importlib.util.find_spec("nnunetv2")
    if spec is None or spec.origin is None:
        return []
    imported = Path(spec.origin).resolve().parent
    owners = sorted(set(metadata.packages_distributions().get("nnunetv2", [])))
    forks = [owner for owner in owners if owner.lower() != "nnunetv2"]
    if forks:
        message = f"the package nnunetv2 belongs to {', '.join(owners)}: a fork takes nnU-Net's place ({imported})"
        advice = f"pip uninstall {' '.join(owners)}; then pip install --force-reinstall --no-deps {versions.WANTED!r}"
        return [Finding(name, "fail", message, advice)]
    expected = _installed_place()
    if expected is not None and imported != expected and expected.parent not in imported.parents:
        message = f"nnunetv2 is imported from {imported}, which shadows the installed one in {expected}"
        advice = (
            f"take {imported.parent} off PYTHONPATH (or out of the .pth file that names it), or uninstall that copy"
        )
        return [Finding(name, "fail", message, advice)]
    return [Finding(name, "ok", f"imported from {imported}")]


def _installed_place() -> Path | None:
    """Where the metadata say that the package nnunetv2 is; for an editable install, the folder of its sources."""
    try:
        distribution = metadata.distribution("nnunetv2")
    except metadata.PackageNotFoundError:
        return None
    direct = json.loads(distribution.read_text("direct_url.json") or "{}")
    if direct.get("dir_info", {}).get("editable"):
        return Path(direct["url"].removeprefix("file://")).resolve() / "nnunetv2"
    return Path(str(distribution.locate_file("nnunetv2"))).resolve()


def check_other_nnunets() -> list[Finding]:
    """Whether a second nnunetv2 is on the path, which another start of Python might import instead."""
    found = {}
    for entry in sys.path:
        folder = Path(entry or ".").resolve() / "nnunetv2"
        if (folder / "__init__.py").is_file():
            found[folder] = entry
    if len(found) < 2:
        return []
    first, *others = found
    unused = ", ".join(map(str, others))
    message = f"{len(found)} copies of nnunetv2 are on Python's path: {first} is used, not {unused}"
    return [Finding("copies", "warn", message, "remove those that you do not need: the order of the path decides")]


def check_external_folders() -> list[Finding]:
    """Whether each folder of ``nnUNet_extTrainer`` is there and is meant for that."""
    findings = []
    package = Path(__file__).resolve().parent
    for entry in filter(str.strip, os.environ.get("nnUNet_extTrainer", "").split(os.pathsep)):
        folder = Path(entry).resolve()
        right = f'use the shim folder: export nnUNet_extTrainer="{shim_folder()}"'
        if not folder.is_dir():
            message = f"nnUNet_extTrainer names {entry}, which is no folder; nnU-Net skips it without a word"
            findings.append(Finding("extTrainer", "warn", message, "correct it, or take it out"))
        elif folder == shim_folder():
            findings.append(Finding("extTrainer", "ok", f"{entry}: our trainers are found without the start-up file"))
        elif folder == package.parent or package in (folder, *folder.parents):
            message = f"nnUNet_extTrainer names {entry}: nnU-Net would import every module there, and classes twice"
            findings.append(Finding("extTrainer", "fail", message, right))
    return findings


def check_torch() -> list[Finding]:
    """Whether torch can be imported, and what it will run on."""
    try:
        import torch
    except Exception as error:
        return [Finding("torch", "fail", f"torch can't be imported: {error!r}", "see https://pytorch.org/get-started")]
    if torch.cuda.is_available():
        device = f"CUDA: {torch.cuda.get_device_name(0)}"
    elif torch.backends.mps.is_available():
        device = "Apple GPU: add -device mps to nnU-Net's commands"
    else:
        device = "no GPU: add -device cpu to nnU-Net's commands"
    return [Finding("torch", "ok", f"{torch.__version__}, {device}")]


def check_distutils() -> list[Finding]:
    """Whether nnU-Net's preprocessing finds distutils, which Python 3.12 no longer has."""
    if importlib.util.find_spec("distutils") is not None:
        return []
    return [Finding("distutils", "fail", "nnU-Net's preprocessing needs distutils", "pip install setuptools")]


def check_names() -> list[Finding]:
    """Whether nnU-Net's own look-ups return our classes for all registered names."""
    name = "names"
    try:
        import nnunetv2
        from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
    except Exception as error:
        return [Finding(name, "fail", f"nnU-Net's look-up can't be imported: {error!r}", "reinstall nnunetv2")]
    from nnunetv2.experiment_planning import plan_and_preprocess_api

    folder = os.path.join(nnunetv2.__path__[0], "experiment_planning")

    def trainer(wanted: str) -> object:
        return recursive_find_trainer_class_by_name(wanted)

    def planner(wanted: str) -> object:
        return plan_and_preprocess_api.recursive_find_python_class(folder, wanted, lookup.PLANNERS_MODULE)

    def network(wanted: str) -> object:
        return pydoc.locate(registry.NETWORKS[wanted].target.replace(":", "."))

    findings = [_resolve("trainer", wanted, trainer) for wanted in registry.TRAINERS]
    if lookup.is_installed():
        findings += [_resolve("planner", wanted, planner) for wanted in registry.PLANNERS]
    else:
        findings.append(Finding(name, "warn", "planners are found by nnunet-ext plan only (see start-up)"))
    return findings + [_resolve("network", wanted, network) for wanted in registry.NETWORKS]


def _resolve(kind: registry.Kind, wanted: str, find: Callable[[str], object]) -> Finding:
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            found = find(wanted)
        ours = lookup.find(kind, wanted)
    except Exception as error:
        return Finding("names", "fail", f"{kind} {wanted} is not found: {error}", "put the findings above right first")
    if found is not ours or found is None:
        message = f"{kind} {wanted} is found as {found!r} instead of {ours!r}"
        return Finding("names", "fail", message, "another class of that name comes first: rename or remove it")
    return Finding("names", "ok", f"{kind} {wanted}")


def check_folders() -> list[Finding]:
    """Whether nnU-Net's three folders are named, exist and can be used."""
    findings = []
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        value = os.environ.get(variable)
        access = os.R_OK if variable == "nnUNet_raw" else os.R_OK | os.W_OK
        if not value:
            finding = Finding(variable, "warn", "not set", f"export {variable}=/path/to/{variable}")
        elif not os.path.isdir(value):
            finding = Finding(variable, "fail", f"{value} is no folder", "make it, or correct the variable")
        elif not os.access(value, access):
            finding = Finding(variable, "fail", f"{value} can't be used: no permission", "change its permissions")
        else:
            finding = Finding(variable, "ok", value)
        findings.append(finding)
    return findings
