"""The piece of `gpu.py` on pre-training: its steps with AMP beside the supervised step."""

from __future__ import annotations

import time
from dataclasses import replace
from statistics import median

import gpu_networks as networks
import measure
import torch
from gpu_networks import PLAIN
from gpu_setting import Outcome, Setting, numerics
from pretraining_steps import METHODS, steps_of
from torch import nn

TARGETS = {"mae": 1.2, "alice": 3.0}
ROWS = (PLAIN, "SSHUNet TSM")


def pretraining_piece(setting: Setting) -> Outcome:
    """A step of masked autoencoding and of Alice with AMP against the supervised step, on as many crops."""
    outcome = Outcome(("network", "method", "step (ms)", "ratio", "target", ""))
    numerics(exact=False)
    on_gpu = setting.device == "cuda"
    plan = setting.plan
    images = torch.randn(2, 1, *plan.patch_size, device=setting.device)
    for name in ROWS:

        def build(outputs: int, supervised: bool, name: str = name) -> nn.Module:
            made = replace(plan, num_classes=outputs)
            return networks.build(name, made, deep_supervision=supervised)

        steps = steps_of(build, images, "fp16" if on_gpu else "off")
        for step in steps.values():
            step.make()
        runs = {kind: step.make for kind, step in steps.items()}
        seconds = measure.in_turns(runs, setting.rounds, time.perf_counter, setting.synchronise)
        for method in METHODS:
            quotient, target = measure.ratio(seconds, method, "supervised"), TARGETS[method]
            held = quotient <= target or not on_gpu  # toys on a CPU say nothing of the targets
            verdict = outcome.check(held, f"pretraining: {name}, {method}: {quotient:.2f}, expected at most {target}")
            milliseconds = f"{1000 * median(seconds[method]):.1f}"
            outcome.rows.append([name, method, milliseconds, f"{quotient:.2f}", f"{target}", verdict])
    outcome.remark = "Two crops; Alice makes one pair of them."
    return outcome
