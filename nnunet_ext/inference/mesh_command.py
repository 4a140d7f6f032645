"""`nnunet-ext mesh`: surfaces of classes and regions, of a label map, of probabilities or of a trained OSS-Net."""

from __future__ import annotations

import argparse
import contextlib
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from nnunet_ext.errors import UserError

if TYPE_CHECKING:
    from nnunet_ext.inference.mesh_making import Made
    from nnunet_ext.inference.mesh_sources import Source

FORMATS = ("obj", "ply", "stl", "glb")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments; imports neither torch nor nnU-Net."""
    parser.epilog = (
        "Coordinates are patient millimetres by the image's origin, spacing and axes. A label map is smoothed without "
        "loss of volume; probabilities are cut where a class is as likely as all others together; an OSS-Net is asked "
        "at the points themselves, at any spacing. Surfaces are closed where the image ends."
    )
    parser.add_argument(
        "input",
        type=Path,
        metavar="INPUT",
        help="label map; CASE.npz of nnUNetv2_predict --save_probabilities, beside its CASE.nii.gz; image of the "
        "probabilities of one class; or the model folder of an OSS-Net, with --image",
    )
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="FILE|DIR", help=".obj, .ply, .stl: one class; .glb: all"
    )
    parser.add_argument(
        "-i", "--image", type=Path, nargs="+", metavar="FILE", help="for a model: each channel; for .npz: its geometry"
    )
    parser.add_argument(
        "--label", action="append", metavar="NAME|N", help="class or region; repeat; A+B joins; default: all"
    )
    parser.add_argument("--names", type=Path, metavar="FILE", help="dataset.json; default: the one beside INPUT")
    parser.add_argument(
        "--spacing",
        type=float,
        nargs="+",
        metavar="MM",
        help="one, or along x, y, z of the image; default: the image's",
    )
    parser.add_argument(
        "--smooth", type=float, metavar="VOXELS", help="of a label map: standard deviation; 0: stairs (default: 0.8)"
    )
    parser.add_argument(
        "--min-volume", type=float, default=0.0, metavar="MM3", help="leave out separate pieces that enclose less"
    )
    parser.add_argument("--coordinates", choices=("lps", "ras"), default="lps", help="default: %(default)s")
    parser.add_argument("--format", choices=FORMATS, help="of the files in a folder (default: ply)")
    parser.add_argument("--picture", type=Path, metavar="PNG", help="draw them from three sides")
    parser.add_argument(
        "--polish",
        action="store_const",
        const=True,
        help="of a model: move vertices onto the field's zeros; default: where --spacing is coarser than the image",
    )
    parser.add_argument("--no-polish", dest="polish", action="store_const", const=False, help="do not")
    parser.add_argument("--overwrite", action="store_true", help="replace files that are there")
    parser.add_argument("-f", "--fold", help="of a model: number or all; default: the first that was trained")
    parser.add_argument("-chk", "--checkpoint", default="checkpoint_final.pth", help="default: %(default)s")
    parser.add_argument("-device", choices=("cpu", "cuda"), help="default: cuda where there is one, else cpu")


def run(args: argparse.Namespace) -> int:
    """Make and write the surfaces; returns the exit code, 1 if one that was asked for could not be made.

    Raises:
        UserError: nothing can be made, or nothing may be written.
    """
    spacing = _checked_spacing(args)
    from nnunet_ext.inference.mesh_labels import chosen
    from nnunet_ext.inference.mesh_making import make, planned_files, refuse_existing, single_file

    if single_file(args.output) and args.format not in (None, args.output.suffix[1:].lower()):
        raise UserError(f"--format {args.format} is for folders; {args.output.name} has its format by its name")
    with contextlib.redirect_stdout(sys.stderr):  # nnU-Net's remarks are not the answer
        source = open_source(args)
    targets = source.targets
    if args.label:
        targets = chosen(args.label, targets, any_number=source.any_number, joinable=source.joinable)
    if not targets:
        raise UserError(f"{source.case} has no label but the background")
    files = planned_files(args.output, args.format, source.case, targets)
    if not args.overwrite:
        refuse_existing([*dict.fromkeys(files.values()), *([args.picture] if args.picture else [])])
    space = args.coordinates.upper()
    with contextlib.redirect_stdout(sys.stderr):
        made = make(source, files, spacing=spacing, space=space, min_volume=args.min_volume, polish=args.polish)
    if args.picture and made.surfaces:
        _draw(args.picture, made, source.case, space)
    _report(made, args.picture)
    return int(not made.surfaces or (bool(args.label) and bool(made.missing)))


def _checked_spacing(args: argparse.Namespace) -> tuple[float, ...] | None:
    """The spacing in the order of the array's axes, (D, H, W)."""
    if args.spacing is not None:
        if len(args.spacing) not in (1, 3):
            raise UserError(f"--spacing takes one number, or three along x, y, z; got {len(args.spacing)}")
        if not all(math.isfinite(mm) and mm > 0 for mm in args.spacing):
            raise UserError(f"--spacing must be positive millimetres; got {' '.join(f'{mm:g}' for mm in args.spacing)}")
    for name in ("min_volume", "smooth"):
        value = getattr(args, name)
        if value is not None and not (math.isfinite(value) and value >= 0):
            raise UserError(f"--{name.replace('_', '-')} must not be negative; got {value:g}")
    if args.picture is not None and args.picture.suffix.lower() != ".png":
        raise UserError(f"--picture writes a .png file; got {args.picture.name}")
    if args.spacing is None:
        return None
    return tuple((args.spacing * 3 if len(args.spacing) == 1 else args.spacing)[::-1])


def open_source(args: argparse.Namespace) -> Source:
    """What the surfaces are made of, by what INPUT is."""
    from nnunet_ext.inference.mesh_labels import read_names
    from nnunet_ext.inference.mesh_sources import SMOOTH, image_file, probability_file

    path: Path = args.input
    if path.is_dir():
        return _model(args)
    beside = path.parent / "dataset.json"
    file = args.names or (beside if beside.is_file() else None)
    names = read_names(file) if file and path.is_file() else None
    if path.name.lower().endswith(".npz"):
        _only_for(args, "a label map", ("smooth",))
        _only_for(args, "a model folder", ("polish", "fold"))
        return probability_file(path, names, args.image[0] if args.image else None)
    _only_for(args, "a model folder or a .npz file", ("image",))
    _only_for(args, "a model folder", ("polish", "fold"))
    return image_file(path, names, SMOOTH if args.smooth is None else args.smooth)


def _only_for(args: argparse.Namespace, what: str, options: tuple[str, ...]) -> None:
    for option in options:
        if getattr(args, option) is not None:
            raise UserError(f"--{option} is for {what}, which {args.input.name} is not")


def _model(args: argparse.Namespace) -> Source:
    _only_for(args, "a label map", ("smooth",))
    _only_for(args, "a label map or a .npz file", ("names",))
    if not ((args.input / "plans.json").is_file() and (args.input / "dataset.json").is_file()):
        raise UserError(
            f"{args.input} is a folder, but not a model's, which has plans.json and dataset.json; of predictions, "
            "give one file at a time"
        )
    if not args.image:
        raise UserError(f"{args.input.name} is a model: give the image by --image, all its channels in their order")
    from nnunet_ext.inference.mesh_model import load_model

    return load_model(args.input, args.image, args.fold, args.checkpoint, args.device)


def _draw(path: Path, made: Made, case: str, space: str) -> None:
    from nnunet_ext.inference.mesh_picture import picture
    from nnunet_ext.whole_files import write_whole

    write_whole(path, picture(list(made.surfaces.values()), case, space))


def _report(made: Made, picture: Path | None) -> None:
    """Say what was made and written, and what was not."""
    for target, surface in made.surfaces.items():
        print(
            f"{target.name}: {surface.volume:.6g} mm3, {surface.area:.6g} mm2, {surface.pieces} piece(s), "
            f"{len(surface.faces)} triangles"
        )
    for file in dict.fromkeys(made.files[target] for target in made.surfaces):
        print(f"written  {file}")
    if picture is not None and made.surfaces:
        print(f"written  {picture}")
    for reason in made.missing.values():
        print(f"nnunet-ext: {reason}: no surface", file=sys.stderr)
