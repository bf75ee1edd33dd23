"""Images and labels: where they come from, how they are split by seed, and how batches are made of them."""

from raygf.data.base import Batch, BatchSource, Dataset, InputSpec, SplitName
from raygf.data.device_batches import DeviceBatches
from raygf.data.images import ImageSet
from raygf.data.load import load_data
from raygf.data.splits import Split

__all__ = [
    "Batch",
    "BatchSource",
    "Dataset",
    "DeviceBatches",
    "ImageSet",
    "InputSpec",
    "Split",
    "SplitName",
    "load_data",
]
