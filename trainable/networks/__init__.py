"""Networks: a name → a network cut into blocks; the frozen teacher; weights on disk."""

from trainable.networks.onednn import mend

mend()
