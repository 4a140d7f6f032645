"""OSS-Net's table of accuracy: Dice and IoU of one structure, on BraTS and LiTS."""

from __future__ import annotations

from nnunet_ext.evaluation_scripts.papers.paper import Column, Row

SOURCE = (
    "C. Reich et al., OSS-Net, BMVC 2021, arXiv:2110.10640, table of accuracy; its O-Net and OSS-Net rows are also "
    "table 1 of the README (specification OSS-Net, section 5.2)"
)
COLUMNS = (Column("Dice", ("foreground",)), Column("IoU", ("foreground",), "IoU"))
BEST_EPOCH = "A published value is the best of the validated epochs, averaged over runs, on the validation cases."
_TWO_D = "in the best of the three slice directions"
BRATS = (
    Row("3D residual U-Net", (0.8827, 0.7995)),
    Row("2D residual U-Net", (0.8589, 0.7658), _TWO_D),
    Row("O-Net", (0.7016, 0.5615)),
    Row("OSS-Net A", (0.8592, 0.7644)),
    Row("OSS-Net B", (0.8541, 0.7572)),
    Row("OSS-Net C", (0.8842, 0.7991)),
    Row("OSS-Net D", (0.8774, 0.7876)),
)
LITS = (
    Row("3D residual U-Net", (0.7888, 0.6558), "at 224³ voxels"),
    Row("2D residual U-Net", (0.6674, 0.5233), _TWO_D),
    Row("O-Net", (0.6506, 0.4842)),
    Row("OSS-Net A", (0.7127, 0.5579)),
    Row("OSS-Net B", (0.7585, 0.6154)),
    Row("OSS-Net C", (0.7616, 0.6201)),
    Row("OSS-Net D", (0.7566, 0.6150)),
)
