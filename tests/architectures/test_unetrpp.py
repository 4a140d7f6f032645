"""UNETR++'s properties: the published formulation, shapes, patches, memory, compilation, errors."""

from __future__ import annotations

import copy
import pickle
import pydoc
from dataclasses import replace
from typing import Any

import pytest
import torch
from measured import really_saved_bytes
from torch import Tensor, nn
from torch.nn import functional
from unetrpp_baseline import VARIANTS, PublishedUNETRPP

from nnunet_ext.architectures.blocks.memory import BYTES_PER_UNIT, saved_bytes
from nnunet_ext.architectures.blocks.transformer_block import BlockOptions, TransformerBlock
from nnunet_ext.architectures.unetrpp import UNETRPP
from nnunet_ext.architectures.unetrpp_plans import (
    PRESETS,
    embedding_stride,
    preset_architecture,
    unetrpp_architecture,
    unetrpp_strides,
)
from nnunet_ext.weights.unetrpp import build_network, canonical_state, key_map, load_weights
from nnunet_ext.weights.unetrpp_configuration import infer_configuration

STYLES = {
    "synapse": (replace(VARIANTS["synapse"], patch=(16, 64, 64), dropout=0.0), 1),
    "acdc": (replace(VARIANTS["acdc"], patch=(8, 64, 64), dropout=0.0), 1),
    "lung": (replace(VARIANTS["lung"], patch=(16, 32, 64), dropout=0.0), 1),
    "tumor": (replace(VARIANTS["tumor"], patch=(32, 64, 64), dropout=0.0), 4),
}
"""The published networks for small patches (2 to 4 tokens in the last stage), without dropout, and input channels."""
NO_DROPOUT: dict[str, Any] = {"attention_dropout": [0.0, 0.0], "block_dropout": 0.0}


def from_architecture(block: dict[str, Any], channels: int, classes: int, deep_supervision: bool) -> UNETRPP:
    arguments = dict(block["arch_kwargs"])
    for name in block["_kw_requires_import"]:
        arguments[name] = pydoc.locate(arguments[name])
    torch.manual_seed(0)
    return UNETRPP(input_channels=channels, num_classes=classes, deep_supervision=deep_supervision, **arguments)


def network(
    patch: tuple[int, ...] = (8, 8, 8),
    strides: list[list[int]] | None = None,
    channels: int = 1,
    classes: int = 3,
    deep_supervision: bool = True,
    **options: Any,
) -> UNETRPP:
    """Three stages of one block each, unless told otherwise, whose attention matters."""
    strides = strides or [[1] * len(patch), [2] * len(patch), [2] * len(patch)]
    stages = len(strides)
    short = {
        "base_width": 4,
        "n_blocks_per_stage": [1] * (stages - 1),
        "n_blocks_per_stage_decoder": [1] * (stages - 2),
    }
    made = from_architecture(
        unetrpp_architecture(patch, strides, **{**short, **options}), channels, classes, deep_supervision
    )
    return mattering(made)


def mattering(made: Any) -> Any:
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if name.endswith("gamma"):
                parameter.fill_(1)
            if name.endswith("pos_embed"):
                parameter.normal_()
    return made


def image(patch: tuple[int, ...] = (8, 8, 8), batch: int = 2, channels: int = 1, **options: Any) -> Tensor:
    return torch.randn(batch, channels, *patch, generator=torch.Generator().manual_seed(1), **options)


def loss_of(outputs: Any) -> Tensor:
    """Not symmetric, so that no gradient is zero for its symmetry."""
    listed = [outputs] if isinstance(outputs, Tensor) else outputs
    weights = torch.Generator().manual_seed(2)
    return torch.stack([(y * torch.randn(y.shape, generator=weights).to(y.dtype)).mean() for y in listed]).sum()


def gradients(made: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in made.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("style", STYLES)
def test_equals_the_published_formulation_with_gradients(style: str) -> None:
    variant, channels = STYLES[style]
    torch.manual_seed(0)
    published = PublishedUNETRPP(variant, channels, 3, features=4, heads=2, depths=(1, 2, 1, 1))
    mattering(published)
    state, _ = canonical_state(published.state_dict())
    configuration = infer_configuration(state)
    ours: Any = build_network(configuration, variant.patch)
    load_weights(ours, state, configuration)
    ours.decoder.deep_supervision = True
    for made in (published, ours):
        made.double().train()
        for module in made.modules():
            if isinstance(module, nn.Dropout3d):
                module.p = 0.0
            elif isinstance(module, TransformerBlock):
                module.block_dropout = module.attention.dropout = 0.0
    x = image(variant.patch, 1, channels, dtype=torch.float64)
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    expected, outputs = published(inputs[0]), ours(inputs[1])
    assert len(outputs) == len(expected) + 1
    for got, wanted in zip(outputs, expected, strict=False):
        torch.testing.assert_close(got, wanted)
    loss_of(expected).backward()
    loss_of(outputs[:3]).backward()
    torch.testing.assert_close(inputs[1].grad, inputs[0].grad)
    names, found = key_map(configuration), gradients(ours)
    wanted_gradients = {names[k]: g.mT if k.endswith(".EF") else g for k, g in gradients(published).items()}
    assert found.keys() == wanted_gradients.keys()
    for name, wanted in wanted_gradients.items():
        torch.testing.assert_close(found[name], wanted, rtol=1e-6, atol=1e-9 * float(wanted.abs().max()) + 1e-12)


@pytest.mark.parametrize("norm", ["BatchNorm", "InstanceNorm"])
def test_two_dimensions_are_three_with_one_slice(norm: str) -> None:
    """With the weights of each 2D kernel as the middle slice of a 3D one."""
    flat = network((16, 24), [[1, 1], [4, 4], [2, 2]], norm_op=f"torch.nn.{norm}2d", **NO_DROPOUT).double()
    strides = [[1, 1, 1], [1, 4, 4], [1, 2, 2]]
    deep = network((1, 16, 24), strides, norm_op=f"torch.nn.{norm}3d", **NO_DROPOUT).double()
    state = deep.state_dict()
    for key, value in flat.state_dict().items():
        if value.dim() == 4 and key != "patch_size":
            state[key] = torch.zeros_like(state[key])
            state[key][:, :, state[key].shape[2] // 2] = value
        elif key != UNETRPP.patch_size_key:
            state[key] = value
    deep.load_state_dict(state)
    x = image((16, 24)).double()
    outputs = flat(x), [y.squeeze(2) for y in deep(x[:, :, None])]
    for got, wanted in zip(*outputs, strict=True):
        torch.testing.assert_close(got, wanted)
    for pair in outputs:
        loss_of(pair).backward()
    found, expected = gradients(flat), gradients(deep)
    for name, got in found.items():
        wanted = expected[name]
        torch.testing.assert_close(got, wanted[:, :, wanted.shape[2] // 2] if wanted.dim() == 5 else wanted)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("synapse", 42_952_850), ("acdc", 66_796_404), ("lung", 121_174_798), ("brats", 42_647_604)],
)
def test_presets_have_the_published_parameters(name: str, parameters: int) -> None:
    preset = PRESETS[name]
    with torch.device("meta"):
        made = from_architecture(preset_architecture(name), preset.input_channels, preset.classes, True)
    counted = {key: p.numel() for key, p in made.named_parameters()}
    own = sum(count for key, count in counted.items() if key.startswith("decoder.seg_layers.0."))
    assert sum(counted.values()) - own == parameters
    assert own == 8 * 16 * preset.classes + preset.classes  # the head that the published network lacks


@pytest.mark.parametrize(
    ("patch", "strides"),
    [
        ((8, 16, 16), [[1, 1, 1], [1, 4, 4], [2, 2, 2], [1, 2, 2]]),
        ((4, 8, 12), [[1, 1, 1], [2, 2, 2], [1, 2, 2]]),
        ((8, 12, 20), [[1, 1, 1], [2, 2, 2], [2, 2, 2]]),
        ((24, 16), [[1, 1], [4, 4], [2, 2]]),
        ((1, 16, 16), [[1, 1, 1], [1, 2, 2], [1, 2, 2]]),
    ],
    ids=str,
)
def test_deep_supervision_has_nnunets_sizes(patch: tuple[int, ...], strides: list[list[int]]) -> None:
    made = network(patch, strides, channels=2)
    x = image(patch, channels=2)
    sizes, size = [], list(patch)
    for stride in strides[:-1]:  # nnU-Net: 1 / cumprod of the strides, without the last
        size = [n // s for n, s in zip(size, stride, strict=True)]
        sizes.append((2, 3, *size))
    for training in (True, False):
        outputs = made.train(training)(x)
        assert [tuple(y.shape) for y in outputs] == sizes
    made.decoder.deep_supervision = False
    alone = made(x)
    torch.testing.assert_close(alone, outputs[0])
    assert alone.shape == (2, 3, *patch)


def test_heads_exist_without_deep_supervision() -> None:
    trained, predicting = network(), network(deep_supervision=False)
    predicting.load_state_dict(trained.state_dict(), strict=True)
    assert len(predicting.decoder.seg_layers) == 2
    assert isinstance(predicting(image()), Tensor)


@pytest.mark.parametrize("other", [(8, 8, 16), (4, 16, 8), (16, 8, 8)], ids=str)
def test_another_patch_names_both_and_the_way_out(other: tuple[int, int, int]) -> None:
    """A permuted patch has the same number of tokens, in other places."""
    made = network((8, 16, 8))
    message = r"\(8, 16, 8\).*\(" + ", ".join(map(str, other)) + r"\).*nnunet-ext adapt-patch.*-pretrained_weights"
    with pytest.raises(ValueError, match=message):
        made(image(other))
    with pytest.raises(ValueError, match=message):
        made.compute_conv_feature_map_size(other)
    reverse = r"\(" + ", ".join(map(str, other)) + r"\).*\(8, 16, 8\).*adapt-patch"
    with pytest.raises(ValueError, match=reverse):
        made.load_state_dict(network(other).state_dict())
    with pytest.raises(ValueError, match=reverse):
        nn.Sequential(made).load_state_dict({f"0.{key}": v for key, v in network(other).state_dict().items()})


def test_a_state_dict_knows_its_patch_and_nothing_more_than_weights() -> None:
    state = network((8, 16, 8)).state_dict()
    marker = state[UNETRPP.patch_size_key]
    assert marker.shape[2:] == (8, 16, 8)
    assert marker.numel() == 0
    without = {key: value for key, value in state.items() if key != UNETRPP.patch_size_key}
    assert network((8, 16, 8)).load_state_dict(without, strict=False).missing_keys == [UNETRPP.patch_size_key]


@pytest.mark.parametrize("patch", [(32, 64, 64), (16, 96, 96), (192, 128)], ids=str)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {**NO_DROPOUT, "projections": "separate", "n_res_blocks": 2},
        {"projections": "no_bias", "fusion": "sum", "sa_layout": "legacy"},
    ],
    ids=["tied", "separate", "sum"],
)
def test_the_memory_estimate_is_what_is_really_kept(patch: tuple[int, ...], options: dict[str, Any]) -> None:
    made = network(patch, unetrpp_strides(patch, embedding_stride(patch)), channels=2, base_width=8, **options)
    estimate = saved_bytes(made, patch, 2)
    assert estimate == pytest.approx(really_saved_bytes(made, (2, 2, *patch)), rel=0.01)
    assert made.compute_conv_feature_map_size(patch) == round(estimate / BYTES_PER_UNIT)


@pytest.mark.parametrize(
    ("patch", "options"),
    [((8, 8, 8), {}), ((16, 16), {"projections": "no_bias", "fusion": "sum", "sa_layout": "legacy"})],
    ids=["3d-tied", "2d-sum-legacy"],
)
def test_a_training_step_compiles_in_one_graph_with_the_same_gradients(
    patch: tuple[int, ...], options: dict[str, Any]
) -> None:
    made = network(patch, **NO_DROPOUT, **options)
    x = image(patch)
    torch._dynamo.reset()
    found = []
    for function in (made, torch.compile(made, backend="aot_eager", fullgraph=True)):
        made.zero_grad()
        outputs = function(x)
        loss_of(outputs).backward()
        found.append([*outputs, *gradients(made).values()])
    for compiled, eager in zip(*found, strict=True):
        torch.testing.assert_close(compiled, eager, rtol=1e-3, atol=1e-5)


def test_dropout_and_inference_compile_in_one_graph() -> None:
    made = network()
    torch._dynamo.reset()
    compiled = torch.compile(made, backend="aot_eager", fullgraph=True)
    loss_of(compiled(image())).backward()
    assert all(g.isfinite().all() for g in gradients(made).values())
    made.eval()
    with torch.inference_mode():
        for got, wanted in zip(compiled(image()), made(image()), strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("channels", "given", "groups"), [(1, None, 1), (2, None, 2), (3, None, 1), (2, 4, 4)])
def test_groups_of_the_patch_embedding(channels: int, given: int | None, groups: int) -> None:
    """As many as input channels, where these divide the width of 8."""
    made: Any = network(channels=channels, stem_groups=given)
    found = [down.norm.num_groups for down in made.encoder.downsamples]
    assert found == [groups, 8]
    assert torch.isfinite(made(image(channels=channels))[0]).all()


def test_float32_ignores_autocast() -> None:
    x = image()
    exact, mixed = network(float32=True, **NO_DROPOUT), network(**NO_DROPOUT)
    expected = exact(x)
    with torch.autocast("cpu", torch.bfloat16):
        outputs, half = exact(x.bfloat16().float()), mixed(x)
    assert {y.dtype for y in outputs} == {torch.float32}
    assert {y.dtype for y in half} == {torch.bfloat16}
    with torch.autocast("cpu", torch.bfloat16):
        for got, wanted in zip(exact(x), expected, strict=True):
            assert torch.equal(got, wanted)
    for got, wanted in zip(half, expected, strict=True):
        assert not torch.equal(got.float(), wanted)
        assert (got.float() - wanted).square().mean().sqrt() < 0.1 * wanted.std()


def test_synchronised_batch_norm_keeps_the_names() -> None:
    made = network()
    state = made.state_dict()
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(made))
    synchronised = [m for m in converted.modules() if isinstance(m, nn.SyncBatchNorm)]
    assert len(synchronised) == sum(isinstance(m, nn.BatchNorm3d) for m in made.modules()) == 2 * 3
    assert list(converted.state_dict()) == list(state)
    converted.eval(), made.eval()
    for got, wanted in zip(converted(image()), made(image()), strict=True):
        torch.testing.assert_close(got, wanted)


def test_copies_and_pickles_are_the_same_network() -> None:
    made = network().eval()
    expected = made(image())
    for twin in (copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        for got, wanted in zip(twin(image()), expected, strict=True):
            assert torch.equal(got, wanted)
        assert twin.patch_size == (8, 8, 8)


def test_whole_channels_are_dropped_before_the_last_convolution() -> None:
    torch.manual_seed(0)
    options = BlockOptions(nn.InstanceNorm3d, block_dropout=0.5)
    block = TransformerBlock(3, 27, 8, 5, 2, options).train()
    seen: dict[str, Tensor] = {}
    block.residual.register_forward_hook(lambda _, args, output: seen.update(attended=args[0], convolved=output))
    x, factors, drop = torch.randn(2, 8, 3, 3, 3), [], functional.dropout

    def dropping(x: Tensor, *rest: Any) -> Tensor:
        factors.append(drop(x, *rest))
        return factors[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(functional, "dropout", dropping)
        y = block(x)
    keep = factors[-1].view(2, 8, 1, 1, 1)
    assert set(keep.unique().tolist()) == {0.0, 2.0}
    assert not torch.equal(keep[0], keep[1])  # each sample has its own
    torch.testing.assert_close(y, seen["attended"] + block.mix(seen["convolved"] * keep), rtol=1e-4, atol=1e-5)
    assert torch.equal(block.eval()(x), block(x))


def test_dropout_in_training_only_and_reproducible() -> None:
    made = network()
    torch.manual_seed(3)
    first, second = made(image())[0], made(image())[0]
    torch.manual_seed(3)
    assert torch.equal(made(image())[0], first)
    assert not torch.equal(first, second)
    made.eval()
    assert torch.equal(made(image())[0], made(image())[0])


def test_channels_last_equals_contiguous(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU's memory layout changes nothing but the speed."""
    for patch in ((8, 8, 8), (16, 16)):
        made = network(patch, **NO_DROPOUT).double()
        x = image(patch).double()
        fast = made(x)
        with monkeypatch.context() as patched:
            patched.setattr("nnunet_ext.architectures.unetrpp.to_channels_last", lambda t: t)
            for got, wanted in zip(fast, made(x), strict=True):
                torch.testing.assert_close(got, wanted)


def test_initialisation_is_the_published() -> None:
    made: Any = from_architecture(unetrpp_architecture((8, 8, 8), [[1] * 3, [2] * 3, [2] * 3]), 1, 2, False)
    encoder, decoder = made.encoder.stages[0][0], made.decoder.stages[0][0]
    for block in (encoder, decoder):
        assert torch.equal(block.gamma, torch.full_like(block.gamma, 1e-6))
        assert not block.pos_embed.any()
        assert torch.equal(block.attention.spatial_temperature, torch.ones(4, 1, 1))
    weight = encoder.attention.qkvv.weight
    assert weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert not encoder.attention.key_projection.bias.any()
    assert decoder.attention.qkvv.weight.std().item() == pytest.approx(weight.shape[1] ** -0.5 / 3**0.5, rel=0.1)
    assert decoder.attention.key_projection.bias.any()


def test_instance_norm_has_no_running_statistics() -> None:
    made = network(norm_op="torch.nn.InstanceNorm3d")
    assert not any("running" in key for key in made.state_dict())
    single, pair = made.eval()(image(batch=2)[:1])[0], made(image(batch=2))[0]
    torch.testing.assert_close(single, pair[:1], rtol=1e-3, atol=1e-4)


def test_learns_one_patch() -> None:
    """The loss on one patch must halve in 30 steps."""
    made = network((16, 16, 16), deep_supervision=False, classes=2, base_width=8)
    x = image((16, 16, 16), 1)
    target = (functional.avg_pool3d(x, 3, 1, 1)[:, 0] > 0.1).long()
    optimizer = torch.optim.AdamW(made.parameters(), 3e-3)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = functional.cross_entropy(made(x), target)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


TWO = [[1, 1, 1], [2, 2, 2]]
ERRORS: list[tuple[dict[str, Any], str]] = [
    ({"conv_op": "torch.nn.Conv1d"}, r"conv_op must be torch.nn.Conv3d or torch.nn.Conv2d; got .*Conv1d"),
    ({"norm_op": "torch.nn.BatchNorm2d"}, "norm_op must be torch.nn.BatchNorm3d or InstanceNorm3d for Conv3d; got"),
    ({"nonlin": "torch.nn.ReLU"}, "nonlin must be torch.nn.LeakyReLU; got"),
    ({"projections": "none"}, "projections 'none' unknown; choose tied or separate or no_bias"),
    ({"fusion": "max"}, "fusion 'max' unknown; choose concat or sum"),
    ({"sa_layout": "new"}, "sa_layout 'new' unknown; choose fixed or legacy"),
    ({"n_res_blocks": 0}, "n_res_blocks must be at least 1; got 0"),
    ({"attention_dropout": [0.1]}, r"attention_dropout needs two rates and block_dropout one.*\[0.1, 0.1\]"),
    ({"attention_dropout": [0.1, 1.0]}, r"each at least 0 and below 1; got \[0.1, 1.0, 0.1\]"),
    ({"block_dropout": -0.1}, r"got \[0.15, 0.15, -0.1\]"),
    ({"strides": TWO, "n_stages": 2}, "at least 3 stages are needed; got n_stages 2"),
    ({"features_per_stage": [4, 8]}, r"features_per_stage needs 3 positive entries for 3 stages; got \[4, 8\]"),
    ({"strides": TWO}, "strides needs 3 positive entries for 3 stages"),
    ({"n_blocks_per_stage": [1]}, r"n_blocks_per_stage needs 2 positive entries for 3 stages; got \[1\]"),
    ({"num_heads": [1, 1, 1]}, "num_heads needs 2 positive entries"),
    ({"proj_size": [4]}, "proj_size needs 2 positive entries"),
    ({"n_blocks_per_stage_decoder": [1, 1]}, "n_blocks_per_stage_decoder needs 1 positive entries"),
    ({"num_heads_decoder": []}, "num_heads_decoder needs 1 positive entries"),
    ({"proj_size_decoder": [4, 4]}, "proj_size_decoder needs 1 positive entries"),
    ({"strides": [[2, 2, 2]] * 3}, "strides must start with a stage of ones"),
    ({"num_heads": [3, 1]}, r"the widths \[8, 16\] must be divisible by the heads \[3, 1\], and by 2"),
    ({"num_heads_decoder": [3]}, r"the widths \[8\] must be divisible by the heads \[3\]"),
    ({"features_per_stage": [4, 7, 16], "num_heads": [1, 1], "num_heads_decoder": [1]}, "by 2 for fusion 'concat'"),
    ({"patch_size": [8, 8]}, r"expected 3 spatial axes, as the strides have; got patch size \(8, 8\)"),
    ({"patch_size": [8, 6, 9]}, r"\(8, 6, 9\) is not divisible by the total stride \(4, 4, 4\); use e.g. \(8, 8, 12\)"),
    ({"patch_size": [0, 8, 8]}, r"\(0, 8, 8\) is not divisible .*use e.g. \(4, 8, 8\)"),
]


@pytest.mark.parametrize(("options", "message"), ERRORS, ids=[message[:40] for _, message in ERRORS])
def test_impossible_arguments_say_what_is_allowed(options: dict[str, Any], message: str) -> None:
    block = unetrpp_architecture((8, 8, 8), [[1, 1, 1], [2, 2, 2], [2, 2, 2]], base_width=4)
    block["arch_kwargs"].update(options)  # some of which `unetrpp_architecture` itself would stumble on
    with pytest.raises(ValueError, match=f"^UNETR\\+\\+: .*{message}"):
        from_architecture(block, 1, 3, False)


def test_weights_of_the_other_layout_are_refused() -> None:
    """Nothing but the order of numbers differs, so nothing else would notice."""
    published, new = (network((8, 16, 8), sa_layout=layout) for layout in ("legacy", "fixed"))
    with pytest.raises(ValueError, match=r"trained with sa_layout 'legacy'.*has 'fixed'.*arch_kwargs"):
        new.load_state_dict(published.state_dict())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"nonlin_kwargs": {"negative_slope": 0.0}}, "negative_slope must be positive; got 0.0"),
        ({"num_heads": [1, 0, 1, 1]}, "num_heads needs 4 positive entries"),
        ({"strides": [[1, 1], [1, 1], [2, 2], [2, 2], [2, 2]]}, "every stride needs 3 positive numbers"),
        ({"strides": [1, 1, 2, 2, 2]}, "every stride needs 3 positive numbers"),
        ({"strides": [[1, 1, 1], [1, 1], [2, 2, 2], [2, 2, 2], [2, 2, 2]]}, "every stride needs 3 positive numbers"),
    ],
)
def test_more_impossible_arguments(changes: dict[str, Any], words: str) -> None:
    block = unetrpp_architecture((8, 16, 8), [[1, 1, 1], [1, 1, 1], [2, 2, 2], [2, 2, 2], [1, 2, 1]], base_width=4)
    arguments = {**block["arch_kwargs"], **changes}
    for name in block["_kw_requires_import"]:
        arguments[name] = pydoc.locate(arguments[name])
    with pytest.raises(ValueError, match=words):
        UNETRPP(input_channels=1, num_classes=2, **arguments)
