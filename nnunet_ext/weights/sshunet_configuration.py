"""How a published SSH-UNet is built: from its constructor's arguments, or inferred from the weights in a checkpoint.

The original's vocabulary (specification sshunet 1.3): L levels have L-2 `downsamples`, one bottleneck and L-1
`upsamples`; kernels and strides are in view coordinates (slice, row, column); a gate position i means the block
`downsamples.i` and its mirror in the decoder.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from nnunet_ext.architectures.sshunet_plans import default_features, sshunet_architecture
from nnunet_ext.weights.loading import CheckpointError, shorten
from nnunet_ext.weights.recognise import looks_like

GATES = ("tsm", "gsm", "gsf", "none")
_GATE_KEYS = {"gsm": "shift.conv3D", "gsf": "shift.channel_conv1"}
_REQUIRED = ("input_block.conv1.conv.weight", "bottleneck.conv1.conv.weight", "output_block.conv.conv.weight")


@dataclass(frozen=True)
class Configuration:
    """One published network, as far as its weights depend on it.

    Attributes:
        input_channels: channels of the image.
        num_classes: output channels, background included.
        features: width of each level, highest resolution first.
        kernel_sizes: (slice, row, column) of each level.
        strides: (slice, row, column) of each level, the first all ones.
        gate: "tsm", "gsm", "gsf" or "none".
        gate_stages: whether each encoder block is gated, highest resolution first.
        gate_decoder: whether each decoder block is gated, LOWEST resolution first.
        basic_decoder: decoder blocks without shortcut and gate.
        affine: instance norms have weights.
        transpconv_bias: transposed convolutions have a bias.
        vfn: the volumetric fusion net is the output block.
        heads: number of deep supervision heads.
    """

    input_channels: int
    num_classes: int
    features: tuple[int, ...]
    kernel_sizes: tuple[tuple[int, ...], ...]
    strides: tuple[tuple[int, ...], ...]
    gate: str
    gate_stages: tuple[bool, ...]
    gate_decoder: tuple[bool, ...]
    basic_decoder: bool = False
    affine: bool = False
    transpconv_bias: bool = True
    vfn: bool = False
    heads: int = 0

    @property
    def levels(self) -> int:
        """Number of resolutions."""
        return len(self.features)

    def has_shortcut(self, level: int) -> bool:
        """Whether the encoder block of `level` has a convolution in its shortcut."""
        before = self.input_channels if level == 0 else self.features[level - 1]
        return before != self.features[level] or any(step != 1 for step in self.strides[level])

    def architecture(self, axes: str = "xyz", stacked_supervision: int = 0) -> dict[str, Any]:
        """The `architecture` block of nnU-Net plans that builds this network as it was published.

        Args:
            axes: "xyz" for data in nnU-Net's axis order (the original's tensors are x, y, z); "zyx" where tensors come
                in the original's order.
            stacked_supervision: number of heads returned the original's way while training; 0 leaves nnU-Net's deep
                supervision.
        """
        return sshunet_architecture(
            self.strides,
            self.features,
            kernel_sizes=self.kernel_sizes,
            norm_op_kwargs={"eps": 1e-5, "affine": self.affine},
            gate=self.gate,
            gate_stages=list(self.gate_stages),
            gate_decoder=list(self.gate_decoder),
            decoder_block="basic" if self.basic_decoder else "residual",
            transpconv_bias=self.transpconv_bias,
            fusion="vfn" if self.vfn else "sum",
            vfn_alignment="legacy",
            vfn_levels=1 + self.heads,
            stride_space="view",
            axes=axes,
            stacked_supervision=stacked_supervision,
        )


@dataclass(frozen=True)
class GateChoice:
    """What a checkpoint without gate parameters cannot tell; None is the published setting, or what the file shows.

    Attributes:
        gate: "tsm" (published), "gsm", "gsf" or "none".
        positions: gated `downsamples` blocks and their decoder mirrors; published: all. -1 alone stands for none of
            the former and, by an accident of the original, for the decoder block of full resolution.
        bottleneck: whether the bottleneck is gated; published: yes.
        decoder: whether decoder blocks are gated; published: yes.
    """

    gate: str | None = None
    positions: tuple[int, ...] | None = None
    bottleneck: bool | None = None
    decoder: bool | None = None

    def __post_init__(self) -> None:
        if self.gate is not None and self.gate not in GATES:
            raise CheckpointError(f"SSH-UNet: gate {self.gate!r} unknown; choose tsm, gsm, gsf or none.")


def gate_flags(
    levels: int, positions: Sequence[int], bottleneck: bool, decoder: bool
) -> tuple[tuple[bool, ...], tuple[bool, ...]]:
    """Gates per encoder block (highest resolution first) and per decoder block (lowest first), by the original's rule.

    The input block is always gated. Decoder block j is if `levels - 3 - j` is among the positions, so the last one asks
    for -1.

    Raises:
        CheckpointError: a position beyond the last `downsamples` block.
    """
    last = levels - 3
    if positions and max(positions) > last:
        raise CheckpointError(
            f"SSH-UNet: gate position {max(positions)} does not exist; {levels} levels have 0 to {last}."
        )
    stages = (True, *(i in positions for i in range(levels - 2)), bottleneck)
    return stages, tuple(decoder and (last - j) in positions for j in range(levels - 1))


def from_constructor(constructor: Mapping[str, Any]) -> Configuration:
    """The configuration that the original's constructor arguments describe.

    Args:
        constructor: keyword arguments of the original network class, as the golden fixtures list them; `class` is
            ignored, and `dropout` since it has no weights and acts only in training.

    Raises:
        CheckpointError: an argument that this package has no equivalent for.
    """
    if constructor.get("spatial_dims", 3) != 3:
        raise CheckpointError(f"SSH-UNet: spatial_dims must be 3, got {constructor['spatial_dims']}.")
    strides = _triples(constructor["strides"])
    levels = len(strides)
    filters = constructor.get("filters")
    gate = constructor.get("gate_type") or "none"
    if gate not in GATES:
        raise CheckpointError(f"SSH-UNet: gate {gate!r} unknown; choose tsm, gsm, gsf or none.")
    gate_in_decoder = bool(constructor.get("gate_dec", True))
    stages, decoder = gate_flags(
        levels, list(constructor["gate_pos"]), bool(constructor.get("gate_in_bottleneck", True)), gate_in_decoder
    )
    return Configuration(
        input_channels=int(constructor["in_channels"]),
        num_classes=int(constructor["out_channels"]),
        features=tuple(default_features(levels)) if filters is None else tuple(int(f) for f in filters[:levels]),
        kernel_sizes=_triples(constructor["kernel_size"]),
        strides=strides,
        gate=gate,
        gate_stages=stages if gate != "none" else (False,) * levels,
        gate_decoder=decoder if gate != "none" else (False,) * (levels - 1),
        basic_decoder=bool(constructor.get("do_basic", False)) and not gate_in_decoder,
        affine=_affine(constructor.get("norm_name", ("INSTANCE", {"affine": True}))),
        transpconv_bias=bool(constructor.get("trans_bias", False)),
        vfn=bool(constructor.get("vfn", False)),
        heads=int(constructor.get("deep_supr_num", 1)) if constructor.get("deep_supervision", False) else 0,
    )


def _triples(values: Sequence[Any]) -> tuple[tuple[int, ...], ...]:
    return tuple((int(v),) * 3 if isinstance(v, int) else tuple(int(n) for n in v) for v in values)


def _affine(norm: Any) -> bool:
    name, options = (norm, {}) if isinstance(norm, str) else (norm[0], dict(norm[1]))
    if str(name).lower() != "instance" or set(options) - {"affine"}:
        raise CheckpointError(
            f"SSH-UNet: only instance norm can be imported, with or without affine weights; got {norm!r}."
        )
    return bool(options.get("affine", False))


def infer_configuration(state: Mapping[str, Tensor], choice: GateChoice | None = None) -> Configuration:
    """Read a network's configuration off its weights (specification sshunet 2.4).

    Args:
        state: canonical names (no `skip_layers.*`) and weights.
        choice: what the file cannot tell; for GSM and GSF it is only compared with what the file shows.

    Raises:
        CheckpointError: not an SSH-UNet, or weights that contradict each other or `choice`.
    """
    choice = choice or GateChoice()
    levels = _levels(state)
    encoder = ["input_block", *(f"downsamples.{i}" for i in range(levels - 2)), "bottleneck"]
    decoder = [f"upsamples.{j}" for j in range(levels - 1)]
    kernels = tuple(_shape(state, f"{block}.conv1.conv.weight")[2:] for block in encoder)
    for j, block in enumerate(decoder):
        kernel = _shape(state, f"{block}.conv_block.conv1.conv.weight")[2:]
        if kernel != kernels[levels - 1 - j]:
            raise CheckpointError(
                f"checkpoint kernels disagree: {block} has {kernel}, its level has {kernels[levels - 1 - j]}"
            )
    strides = [_shape(state, f"{block}.transp_conv.conv.weight")[2:] for block in reversed(decoder)]
    basic = "upsamples.0.conv_block.conv3.conv.weight" not in state
    gate, stages, gated_decoder = _gates(state, encoder, decoder, choice, basic)
    vfn = "output_block.out.conv.weight" in state
    heads = _indices(state, "deep_supervision_heads")
    return Configuration(
        input_channels=_shape(state, "input_block.conv1.conv.weight")[1],
        num_classes=_shape(state, "output_block.conv.conv.weight")[0],
        features=tuple(_shape(state, f"{block}.conv2.conv.weight")[0] for block in encoder),
        kernel_sizes=kernels,
        strides=((1, 1, 1), *strides),
        gate=gate,
        gate_stages=stages,
        gate_decoder=gated_decoder,
        basic_decoder=basic,
        affine="input_block.norm1.weight" in state,
        transpconv_bias="upsamples.0.transp_conv.conv.bias" in state,
        vfn=vfn,
        heads=len(heads),
    )


def _shape(state: Mapping[str, Tensor], key: str) -> tuple[int, ...]:
    if key not in state:
        raise CheckpointError(f"checkpoint is incomplete: {key} is missing")
    shape = tuple(state[key].shape)
    if len(shape) != 5:
        raise CheckpointError(f"checkpoint entry {key} must have 5 axes (a 3D convolution), got shape {shape}")
    return shape


def _indices(state: Mapping[str, Tensor], group: str) -> list[int]:
    """The indices of a module list, which must start at 0 without gaps."""
    pattern = re.compile(rf"{group}\.(\d+)\.")
    found = sorted({int(match.group(1)) for key in state if (match := pattern.match(key))})
    if found != list(range(len(found))):
        raise CheckpointError(f"checkpoint is incomplete: {group} has the indices {shorten(map(str, found))}")
    return found


def _levels(state: Mapping[str, Tensor]) -> int:
    absent = [key for key in _REQUIRED if key not in state]
    if absent:
        raise CheckpointError(
            f"not an SSH-UNet checkpoint: {absent[0]} is missing, found {shorten(state, 3)}{looks_like(state)}"
        )
    if "output_block.out.conv.weight" not in state and "output_block.conv1.conv.weight" not in state:
        raise CheckpointError(
            "not an SSH-UNet checkpoint: output_block.conv1 (sum fusion) or output_block.out (VFN) is missing; "
            "its other names look like MONAI's DynUNet"
        )
    levels = len(_indices(state, "downsamples")) + 2
    decoders = len(_indices(state, "upsamples"))
    if levels < 3 or decoders != levels - 1:
        raise CheckpointError(
            f"checkpoint is incomplete: it has {levels - 2} downsamples and {decoders} upsamples; "
            "expected at least one of the former, and one more of the latter"
        )
    return levels


def _gates(
    state: Mapping[str, Tensor], encoder: Sequence[str], decoder: Sequence[str], choice: GateChoice, basic: bool
) -> tuple[str, tuple[bool, ...], tuple[bool, ...]]:
    """Gate type, gates per encoder block and per decoder block."""
    levels = len(encoder)
    blocks = [*encoder, *(f"{block}.conv_block" for block in decoder)]
    gated = [f"{block}.shift.conv3D.weight" in state for block in blocks]
    fused = [f"{block}.shift.channel_conv1.weight" in state for block in blocks]
    if not any(gated):
        return _chosen_gates(levels, choice, basic)
    if any(fused) and fused != gated:
        raise CheckpointError(
            "checkpoint mixes gates: some blocks have shift.channel_conv1 (gsf), others only shift.conv3D (gsm)"
        )
    gate = "gsf" if any(fused) else "gsm"
    if choice.gate not in (None, gate):
        raise CheckpointError(
            f"checkpoint has gate '{gate}' ({_GATE_KEYS[gate]} found) but the plans say '{choice.gate}'"
        )
    stages, in_decoder = tuple(gated[:levels]), tuple(gated[levels:])
    _compare_with_choice(levels, stages, in_decoder, choice)
    return gate, stages, in_decoder


def _chosen_gates(levels: int, choice: GateChoice, basic: bool) -> tuple[str, tuple[bool, ...], tuple[bool, ...]]:
    gate = choice.gate or "tsm"
    if gate in _GATE_KEYS:
        raise CheckpointError(
            f"checkpoint has no gate parameters ({_GATE_KEYS[gate]} not found) but the plans say '{gate}'"
        )
    if gate == "none":
        if choice.positions or choice.bottleneck or choice.decoder:
            raise CheckpointError(
                "SSH-UNet: gate 'none' goes without gate positions, gated bottleneck or gated decoder."
            )
        return gate, (False,) * levels, (False,) * (levels - 1)
    if basic and choice.decoder:
        raise CheckpointError(
            "checkpoint has basic decoder blocks (no conv3), which have no gates, but the plans gate the decoder"
        )
    decoder = not basic if choice.decoder is None else choice.decoder
    positions = range(levels - 2) if choice.positions is None else choice.positions
    return gate, *gate_flags(levels, tuple(positions), choice.bottleneck is not False, decoder)


def _compare_with_choice(levels: int, stages: Sequence[bool], in_decoder: Sequence[bool], choice: GateChoice) -> None:
    """Raise CheckpointError where `choice` contradicts the gates that the file shows."""
    found = [i for i in range(levels - 2) if stages[i + 1]] + ([-1] if in_decoder[-1] else [])
    positions = found if choice.positions is None else choice.positions
    bottleneck = stages[-1] if choice.bottleneck is None else choice.bottleneck
    decoder = any(in_decoder) if choice.decoder is None else choice.decoder
    asked_stages, asked_decoder = gate_flags(levels, positions, bottleneck, decoder)
    if asked_stages[1:-1] != tuple(stages[1:-1]):
        raise CheckpointError(f"checkpoint has gates at positions {found} but the plans say {sorted(set(positions))}")
    if asked_stages[-1] != stages[-1]:
        raise CheckpointError(
            f"checkpoint has {'a' if stages[-1] else 'no'} gate in the bottleneck but the plans say otherwise"
        )
    if asked_decoder != tuple(in_decoder):
        gated = [j for j, flag in enumerate(in_decoder) if flag]
        raise CheckpointError(
            f"checkpoint has gates in the decoder blocks {gated} (upsamples.*) but the plans say otherwise"
        )
