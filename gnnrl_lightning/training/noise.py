"""Warnings of libraries that say nothing to the user of this program."""

NOISE = (
    ".*torch.jit.*deprecated.*",  # torch-geometric's
    ".*isinstance.treespec, LeafSpec.*",  # Lightning's
    ".*smaller than the logging interval.*",  # an iteration of the search is an epoch of one batch
    ".*does not have many workers.*",  # images in memory come faster without
)
