"""A trained OSS-Net and one case as a function of the original image's voxel indices, at any resolution.

nnU-Net predicts a case at the resolution it was preprocessed to, and resamples the logits of all classes to the
image's own: its peak memory. A network that decodes points is asked at the image's voxels instead, or between them.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor

from nnunet_ext.architectures.blocks.adaptive_decoding import Decoded, DecodeMode, decode_grid
from nnunet_ext.architectures.blocks.point_grid import PointGrid
from nnunet_ext.architectures.occupancy import OccupancyNetwork
from nnunet_ext.errors import UserError
from nnunet_ext.inference.patches import padded_to
from nnunet_ext.inference.volume_geometry import CaseGeometry
from nnunet_ext.inference.volume_windows import View, WindowField

#: Encoded windows that are kept: a row of neighbours, whatever the size of image and output.
CACHED_WINDOWS = 24
#: Logit of what is certain: the background outside of the crop.
CERTAIN = 10.0


class CaseField:
    """Logits of a case at any point; coordinates are voxel indices of the original image, in its reader's axis order.

    Cases larger than the network's patch are covered by nnU-Net's sliding windows. Windows are encoded once and kept
    as long as they are needed; at each point, those that hold it are blended with nnU-Net's Gaussian weights. At the
    voxels of the preprocessed case the result is that of nnU-Net's own prediction.

    Attributes:
        shape: voxels of the original image (D, H, W), as its reader gives it.
        spacing: of the original image in millimetres, same order.
        properties: nnU-Net's, of the case.
        num_classes: channels K of logits.
        regions: whether they are regions with a sigmoid each, instead of classes with a softmax.
        label_manager: nnU-Net's; turns logits into labels.
        geometry: where the preprocessed voxels lie in the original image.
        device: of the networks and the logits.
    """

    def __init__(
        self,
        predictor: Any,
        data: Tensor,
        properties: dict[str, Any],
        *,
        mirroring: bool = False,
        cached_windows: int = CACHED_WINDOWS,
    ) -> None:
        """Take a preprocessed case; `load` does it from files.

        Args:
            predictor: nnU-Net's, with an OSS-Net. Several folds' logits are averaged.
            data: (C, *resampled), preprocessed.
            properties: as nnU-Net's preprocessor gives them.
            mirroring: average over all mirrored windows, as nnU-Net does by default (in 3D eight times the work).
            cached_windows: encoded windows to keep.

        Raises:
            UserError: the model is none that this works for.
        """
        network = check_model(predictor)
        patch = tuple(int(edge) for edge in predictor.configuration_manager.patch_size)
        self.geometry = CaseGeometry.of(properties, predictor.plans_manager.transpose_forward, data.shape[1:], patch)
        self.shape = self.geometry.shape
        self.spacing = tuple(float(s) for s in properties["spacing"])
        self.properties = properties
        self.label_manager = predictor.label_manager
        self.num_classes = network.num_classes
        self.regions = bool(self.label_manager.has_regions)
        self.device = torch.device(predictor.device)
        padded = padded_to(data, patch)
        slicers = predictor._internal_get_sliding_window_slicers(padded.shape[1:])
        self._network = network
        self._windows = WindowField(
            _views(predictor, network, mirroring),
            padded,
            [tuple(int(part.start) for part in slicer[1:]) for slicer in slicers],
            patch,
            gaussian=bool(predictor.use_gaussian),
            device=self.device,
            cached=cached_windows,
        )

    @classmethod
    def load(cls, predictor: Any, files: Sequence[str], *, mirroring: bool = False) -> CaseField:
        """Read and preprocess a case as nnU-Net does.

        Args:
            predictor: of `nnunet_ext.inference.patches.load_predictor`.
            files: the case's channels.
            mirroring: see `CaseField`.

        Raises:
            UserError: the images cannot be read, or the model is none that this works for.
        """
        check_model(predictor)
        plans, configuration = predictor.plans_manager, predictor.configuration_manager
        preprocessor = configuration.preprocessor_class(verbose=False)
        try:
            data, _, properties = preprocessor.run_case(list(files), None, plans, configuration, predictor.dataset_json)
        except RuntimeError as error:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            raise UserError(f"cannot read {', '.join(files)}: {lines[-1] if lines else 'unreadable'}") from error
        return cls(predictor, torch.from_numpy(data).float(), properties, mirroring=mirroring)

    def logits(self, grid: PointGrid, mode: DecodeMode | None = None) -> Decoded:
        """Logits of a grid of points, without gradients; K times the grid's points are in memory.

        Args:
            grid: in voxel indices of the original image; may reach beyond it.
            mode: how they are decoded; None for the network's own.

        Returns:
            Logits (K, *grid.shape) and what was evaluated; outside of nnU-Net's crop, certain background.
        """
        logits = self._background(grid.shape)
        evaluated = torch.zeros(grid.shape, dtype=torch.bool, device=self.device)
        inside = self.geometry.inside(grid)
        if any(part.start == part.stop for part in inside):
            return Decoded(logits, evaluated)
        part = grid.brick([s.start for s in inside], [s.stop - s.start for s in inside])
        with torch.no_grad():
            found = self._decode(self.geometry.grid(part), mode or self._network.decode_mode)
        back, there = self.geometry.backward, (slice(None), *inside)
        logits[there] = found.logits.permute(0, *(axis + 1 for axis in back))
        evaluated[inside] = found.evaluated.permute(back)
        return Decoded(logits, evaluated)

    def logits_at(self, coords: Tensor) -> Tensor:
        """Logits (K, N), float32, at points (N, dim); gradients flow to coordinates that ask for them."""
        coords = coords.to(self.device)
        inside = self.geometry.holds(coords)
        if bool(inside.all()):
            return self._windows(self.geometry.coordinates(coords))
        where = inside.nonzero()[:, 0]
        found = self._windows(self.geometry.coordinates(coords[where]))
        return self._background(coords.shape[:1]).index_copy(1, where, found)

    def bricks(self, grid: PointGrid, edge: int) -> list[tuple[slice, ...]]:
        """Boxes of a grid that together hold all its points in nnU-Net's crop, each with at most `edge` points an edge.

        Where boxes are cut, windows start, if they are not too near to each other; neighbours follow each other. So
        few windows are encoded twice.
        """
        starts = [{window[axis] - 0.5 for window in self._windows.windows} for axis in range(len(grid.shape))]
        cuts = []
        for axis, part in enumerate(self.geometry.inside(grid)):
            across = starts[self.geometry.backward[axis]]
            faces = sorted(self.geometry.index_of(grid, axis, start) for start in across)
            cuts.append(_pieces(part, faces, edge))
        return list(itertools.product(*cuts))

    def _background(self, shape: Sequence[int]) -> Tensor:
        logits = torch.full((self.num_classes, *shape), -CERTAIN, device=self.device)
        if not self.regions:
            logits[0] = CERTAIN
        return logits

    def _decode(self, grid: PointGrid, mode: DecodeMode) -> Decoded:
        """As `logits`, in voxels of the padded preprocessed case, all points in the crop."""
        last = [o + s * (n - 1) for o, s, n in zip(grid.offset, grid.scale, grid.shape, strict=True)]
        return decode_grid(
            self._windows,
            grid,
            mode=mode,
            regions=self.regions,
            first_stride=self._network.first_stride,
            presence=None if mode == "dense" else self._windows.presence(grid.offset, last),
            device=self.device,
        )


def check_model(predictor: Any) -> OccupancyNetwork:
    """The predictor's network, if it decodes points and a case can be a field of it.

    Raises:
        UserError: it is another network, for slices, or needs its own preprocessing.
    """
    network = getattr(predictor.network, "_orig_mod", predictor.network)
    if not isinstance(network, OccupancyNetwork):
        raise UserError(
            f"the model's network is {type(network).__name__}, which knows voxels only; models that give points at "
            "any resolution are those of OSSNetTrainer. Use nnUNetv2_predict for this one"
        )
    if network.dim != 3:
        raise UserError(
            "the model is of a 2d configuration and knows nothing between slices; give the folder of a 3d one, or "
            "use nnUNetv2_predict"
        )
    if case_adapter(predictor) is not None:
        raise UserError(
            "the model is an imported published one, which sees whole cases at their own resolution and not what "
            "nnU-Net preprocesses; predict labels with nnunet-ext predict-volume and go on with those"
        )
    return network


def case_adapter(predictor: Any) -> str | None:
    """The name of the published preprocessing that an imported model needs instead of nnU-Net's, if it does."""
    ours = predictor.plans_manager.plans.get("nnunet_ext")
    return ours.get("case_adapter") if isinstance(ours, dict) else None


def _views(predictor: Any, network: OccupancyNetwork, mirroring: bool) -> list[View]:
    """Of each fold, the network in eval mode; mirrored along all combinations of axes that nnU-Net would use."""
    axes = tuple(predictor.allowed_mirroring_axes or ()) if mirroring else ()
    flips = [c for count in range(len(axes) + 1) for c in itertools.combinations(axes, count)]
    views = []
    for parameters in predictor.list_of_parameters:
        of_fold = deepcopy(network) if len(predictor.list_of_parameters) > 1 else network
        of_fold.load_state_dict(parameters)
        of_fold = of_fold.to(predictor.device).eval().requires_grad_(False)
        views += [View(of_fold, flip) for flip in flips]
    return views


def _pieces(part: slice, faces: Sequence[int], edge: int) -> list[slice]:
    """A range of indices cut at faces, but in no smaller pieces than needed, and in even pieces of at most `edge`."""
    cuts = [part.start]
    ends = [face for face in faces if part.start < face < part.stop] + [part.stop]
    for index, end in enumerate(ends):
        following = ends[index + 1] if index + 1 < len(ends) else None
        if following is not None and following - cuts[-1] <= edge:
            continue  # the next face can be reached as well
        count = -(-(end - cuts[-1]) // edge)
        start = cuts[-1]
        cuts += [start + (end - start) * (i + 1) // count for i in range(count) if end > start]
    return [slice(*pair) for pair in itertools.pairwise(cuts)]
