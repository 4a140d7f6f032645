"""``python -m nnunet_ext`` is ``nnunet-ext``."""

from __future__ import annotations

import sys

from nnunet_ext.cli import main

if __name__ == "__main__":
    sys.exit(main())
