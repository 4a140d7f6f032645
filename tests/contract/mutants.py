"""The toy, each time with one mistake that people make; the suite must find every one (test_suite.py)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from contract.toy_plugin import ToyTrainer, ToyUNet
from torch import Tensor, nn
from torch.nn import functional


class Supervised(ToyUNet):
    """Deep supervision by default: the predictor would get a list."""

    def __init__(self, input_channels: int, num_classes: int, deep_supervision: bool = True, **kwargs: Any) -> None:
        super().__init__(input_channels, num_classes, deep_supervision=deep_supervision, **kwargs)


class Keywords(ToyUNet):
    """Names that nnU-Net does not know behind ``**kwargs``."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)


class OneHead(ToyUNet):
    """Builds the lower heads for deep supervision only."""

    def __init__(self, input_channels: int, num_classes: int, deep_supervision: bool = False, **kwargs: Any) -> None:
        super().__init__(input_channels, num_classes, deep_supervision=deep_supervision, **kwargs)
        if not deep_supervision:
            for head in range(len(self.decoder.seg_layers) - 1):
                self.decoder.seg_layers[head] = nn.Identity()


class OtherHeadName(ToyUNet):
    """Heads that `-pretrained_weights` does not know."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        decoder: Any = self.decoder
        decoder.heads = decoder._modules.pop("seg_layers")
        object.__setattr__(decoder, "seg_layers", decoder.heads)


class HeadNameOfTrunk(ToyUNet):
    """A part of the trunk among the heads: `-pretrained_weights` would skip it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        heads: Any = self.decoder.seg_layers
        heads.stem = self.encoder[0]
        self.encoder[0] = _Call(heads.stem)


class _Call(nn.Module):
    """Calls a module that is registered elsewhere."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        object.__setattr__(self, "module", module)

    def forward(self, x: Tensor) -> Tensor:
        module: Any = vars(self)["module"]
        result: Tensor = module(x)
        return result


class Twice(ToyUNet):
    """The encoder also in the decoder, as nnU-Net's own networks do."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.decoder.encoder = self.encoder


class Softmax(ToyUNet):
    """Probabilities for logits."""

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        outputs = super().forward(x)
        return [o.softmax(1) for o in outputs] if isinstance(outputs, list) else outputs.softmax(1)


class Cached(ToyUNet):
    """Returns a buffer of its own, which the predictor changes."""

    kept: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        outputs = super().forward(x)
        if isinstance(outputs, list) or self.training:
            return outputs
        if self.kept is None or self.kept.shape != outputs.shape:
            self.kept = outputs.clone()
        return self.kept


class RandomAtInference(ToyUNet):
    """Dropout that eval() does not switch off."""

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        return super().forward(functional.dropout(x, 0.2, training=True))


class BatchStatistics(ToyUNet):
    """A sample's prediction depends on the others in the batch."""

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        return super().forward(x - x.mean(0, keepdim=True) / 2)


class LowestFirst(ToyUNet):
    """Outputs in the wrong order."""

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        outputs = super().forward(x)
        return outputs[::-1] if isinstance(outputs, list) else outputs


class OneOutputLess(ToyUNet):
    """nnU-Net would silently leave a scale out."""

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        outputs = super().forward(x)
        return outputs[:-1] if isinstance(outputs, list) else outputs


class FixedSwitch(ToyUNet):
    """Deep supervision is fixed when it is built."""

    def __init__(self, input_channels: int, num_classes: int, deep_supervision: bool = False, **kwargs: Any) -> None:
        super().__init__(input_channels, num_classes, deep_supervision=deep_supervision, **kwargs)
        self.fixed = deep_supervision

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        self.decoder.deep_supervision = self.fixed
        return super().forward(x)


class NeedsWeights(ToyUNet):
    """Looks at its weights, of which the meta device has none."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.norm = float(next(self.parameters()).detach().norm())


class UnusedParameter(ToyUNet):
    """DDP would wait for it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.unused = nn.Parameter(torch.ones(1))


class AnyPatch(ToyUNet):
    """Takes patches that its strides cannot halve."""

    def check_patch_size(self, patch_size: Sequence[int]) -> None:
        return


class CountsConvolutions(ToyUNet):
    """A count of its own instead of the measurement."""

    def compute_conv_feature_map_size(self, input_size: Sequence[int]) -> int:
        return int(1.05 * super().compute_conv_feature_map_size(input_size))


class ConstantCount(ToyUNet):
    """A count that does not depend on the patch."""

    def compute_conv_feature_map_size(self, input_size: Sequence[int]) -> int:
        return 1000


class LesserTrainer(ToyTrainer):
    """No mistake: registered by a test with fewer claims than the toy."""


class ExtraArgument(ToyTrainer):
    """nnU-Net would look for the argument among its own."""

    def __init__(self, plans: Any, configuration: str, fold: int, dataset_json: Any, extra: int = 0) -> None:
        super().__init__(plans, configuration, fold, dataset_json)


class BoundBuild(ToyTrainer):
    """Trains, but can never be used for prediction."""

    def build_network_architecture(self, *args: Any, **kwargs: Any) -> nn.Module:  # type: ignore[override]
        return ToyTrainer.build_network_architecture(*args, **kwargs)


class OldBuild(ToyTrainer):
    """The signature of nnU-Net 2.3 to 2.6."""

    @staticmethod
    def build_network_architecture(  # type: ignore[override]
        architecture_class_name: str,
        arch_init_kwargs: Any,
        arch_init_kwargs_req_import: Any,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> nn.Module:
        raise NotImplementedError(architecture_class_name)
