"""Self-supervised pre-training of the plans' own networks (``specs/alice.md``; Jiang et al., ICCV 2023)."""
