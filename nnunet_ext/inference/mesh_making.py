"""From a source to files: which file gets which surface, one surface after the other, and what was made."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nnunet_ext.architectures.blocks.point_grid import PointGrid
from nnunet_ext.errors import UserError
from nnunet_ext.inference.mesh import Surface, check_size, grid_of, surface_of
from nnunet_ext.inference.mesh_boxes import Box
from nnunet_ext.inference.mesh_files import FORMATS, encoded
from nnunet_ext.inference.mesh_labels import Target
from nnunet_ext.inference.mesh_sources import Source
from nnunet_ext.whole_files import write_whole

UNKNOWN_FORMATS = (".vtk", ".vtp", ".off", ".gltf", ".3mf", ".dae", ".x3d", ".wrl", ".fbx", ".step", ".stp")


@dataclass
class Made:
    """What came of it.

    Attributes:
        files: where each surface was written; of several in one GLB, all the same.
        surfaces: by target, in the order in which they were made.
        missing: targets without a surface, and why.
    """

    files: dict[Target, Path]
    surfaces: dict[Target, Surface] = field(default_factory=dict)
    missing: dict[Target, str] = field(default_factory=dict)


def single_file(output: Path) -> bool:
    """Whether the output is one file by its name; else it is a folder.

    Raises:
        UserError: it is a file of another format.
    """
    ending = output.suffix.lower()
    if output.is_dir():
        return False
    if ending in UNKNOWN_FORMATS or (output.is_file() and ending[1:] not in FORMATS):
        raise UserError(f"{output}: meshes are written as {', '.join(FORMATS)}; give such a file, or a folder")
    return ending[1:] in FORMATS


def planned_files(output: Path, kind: str | None, case: str, targets: Sequence[Target]) -> dict[Target, Path]:
    """A file for each target.

    Args:
        output: a file by its name, or a folder.
        kind: of the files in a folder; None for "ply".
        case: begins the names of files in a folder.
        targets: what is to be made.

    Raises:
        UserError: the file's format holds one surface only, and there are several.
    """
    if not single_file(output):
        names = [target.file_name for target in targets]
        unique = [name if names.count(name) == 1 else f"{name}_{place}" for place, name in enumerate(names, 1)]
        return {t: output / f"{case}_{name}.{kind or 'ply'}" for t, name in zip(targets, unique, strict=True)}
    if len(targets) > 1 and output.suffix.lower() != ".glb":
        raise UserError(
            f"{output.name} can hold one surface, and there are {len(targets)}: "
            f"{', '.join(target.name for target in targets)}; choose one by --label, or give a folder or a .glb by -o"
        )
    return dict.fromkeys(targets, output)


def refuse_existing(files: Sequence[Path]) -> None:
    """Raise a UserError that names the first file that is there already."""
    for file in files:
        if file.exists():
            raise UserError(f"{file} exists; give another name, or --overwrite to replace it")


def make(
    source: Source,
    files: Mapping[Target, Path],
    *,
    spacing: Sequence[float] | None = None,
    space: str = "LPS",
    min_volume: float = 0.0,
    polish: bool | None = None,
) -> Made:
    """Make surfaces and write each as soon as it is made; those of one GLB together.

    Args:
        source: a label map, probabilities or a model with an image.
        files: where each target goes, as `planned_files` has it.
        spacing: millimetres along the array's axes (D, H, W); None for the image's own.
        space: "LPS" or "RAS".
        min_volume: see `mesh.surface_of`.
        polish: whether vertices are moved onto the field's own zeros, where the source has such a field; None: where
            the spacing is coarser than the image's.

    Raises:
        UserError: a surface needs too many points, or a file cannot be written.
    """
    grid = grid_of(source.geometry, spacing)
    boxes = source.boxes(list(files), grid)
    for target, (start, shape) in boxes.items():
        check_size(grid.brick(start, shape), target.name)
    if polish is None:
        polish = any(scale > 1 + 1e-6 for scale in grid.scale)
    made = Made(dict(files))
    for target, surface, inside in _surfaces(source, list(files), boxes, grid, min_volume, polish):
        if surface is None and inside:
            made.missing[target] = f"{target.name} has no piece of {min_volume:g} mm3 (--min-volume) at this spacing"
        if surface is None:
            made.missing.setdefault(target, _why(source, target, boxes, grid))
            continue
        made.surfaces[target] = surface
        alone = list(files.values()).count(files[target]) == 1
        if alone:
            _write(files[target], [surface], space)
    for file in dict.fromkeys(files.values()):
        together = [surface for target, surface in made.surfaces.items() if files[target] == file]
        if list(files.values()).count(file) > 1 and together:
            _write(file, together, space)
    return made


def _surfaces(
    source: Source,
    targets: Sequence[Target],
    boxes: Mapping[Target, Box],
    grid: PointGrid,
    min_volume: float,
    polish: bool,
) -> Iterator[tuple[Target, Surface | None, bool]]:
    """Each target, its surface, and whether anything of it was found at the grid's points."""
    for target in targets:
        if target not in boxes:
            yield target, None, False
    for target, values in source.fields(boxes, grid):
        surface = surface_of(
            values,
            grid.brick(*boxes[target]),
            source.geometry,
            name=target.name,
            number=target.number,
            polish=source.points(target) if polish else None,
            min_volume=min_volume,
        )
        inside = surface is not None or bool((values > 0).any())
        del values  # before the next one is made
        yield target, surface, inside


def _why(source: Source, target: Target, boxes: Mapping[Target, Box], grid: PointGrid) -> str:
    """Why nothing of a target is at the grid's points."""
    seen_everywhere = source.on_voxels or all(scale <= 1 + 1e-6 for scale in grid.scale)
    found_on_voxels = target in boxes and (source.on_voxels or boxes[target] != ((0,) * 3, grid.shape))
    if seen_everywhere and not found_on_voxels:
        return f"{target.name} does not occur"
    between = "lies between" if found_on_voxels else "does not occur at"
    return f"{target.name} {between} the points of this spacing; give a smaller --spacing"


def _write(file: Path, surfaces: Sequence[Surface], space: str) -> None:
    write_whole(file, encoded(surfaces, file.suffix[1:].lower(), space))
