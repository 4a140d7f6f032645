"""What users of pre-trained weights cite, in nnssl's form."""

from __future__ import annotations

from typing import Any

_MAE = (
    "He, K., Chen, X., Xie, S., Li, Y., Dollár, P., & Girshick, R. (2022). Masked autoencoders are scalable vision "
    "learners. In Proceedings of the IEEE/CVF Conference on Computer Vision and Pattern Recognition (pp. 16000-16009)."
)
_ALICE = (
    "Jiang, Y., Sun, M., Guo, H., Bai, X., Yan, K., Lu, L., & Xu, M. (2023). Anatomical invariance modeling and "
    "semantic alignment for self-supervised learning in 3D medical image analysis. In Proceedings of the IEEE/CVF "
    "International Conference on Computer Vision (pp. 15859-15869)."
)
_NNUNET = (
    "Isensee, F., Jaeger, P. F., Kohl, S. A., Petersen, J., & Maier-Hein, K. H. (2021). nnU-Net: a self-configuring "
    "method for deep learning-based biomedical image segmentation. Nature Methods, 18(2), 203-211."
)
_FRAMEWORK = {"type": "Framework", "name": "nnU-Net", "apa_citations": [_NNUNET]}

CITATIONS: dict[str, list[dict[str, Any]]] = {
    "mae": [{"type": "Method", "name": "MAE", "apa_citations": [_MAE]}, _FRAMEWORK],
    "alice": [{"type": "Method", "name": "Alice", "apa_citations": [_ALICE]}, _FRAMEWORK],
}
"""Method to its entries."""
