"""Published checkpoints into this package's networks and nnU-Net's model folders, safely and with a report."""
