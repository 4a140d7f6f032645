"""nnU-Net's own networks and recipe, with the suffixes of this package's trainers."""

from __future__ import annotations

from nnunet_ext.trainers.base import BaseTrainer
from nnunet_ext.trainers.variants import variant_attribute


class UNetTrainer(BaseTrainer):
    """Trains whatever network the plans name, as nnU-Net's own trainer does: nothing of the method is changed.

    For nnU-Net's PlainConvUNet and ResidualEncoderUNet it is to `nnUNetTrainer` what the other trainers here are to
    their methods: seeds, lengths, AdamW, no mirroring and fine-tuning by suffixes, checks before training, and atomic
    checkpoints. A checkpoint predicts with nnU-Net's trainer, too. With self-regularisation it is `KDUNetTrainer`.
    """


__getattr__ = variant_attribute(__name__)
