"""Images that are no files of their own: timm's data sets by name, WebDataset shards, and folders of idx files.

Read `notation` for how a user names them, `image_set` for what every one of them becomes, and then one reader each:
`idx_files`, `torchvision_sets`, `hugging_face`, `streams`, `shards`. Every image has a position that it can be read by,
so that training, resuming, evaluation and reports are what they are with files.
"""

from scalablevit.classification.readers.image_set import ImageSet
from scalablevit.classification.readers.notation import is_named_set
from scalablevit.classification.readers.opening import (
    download_set,
    is_set,
    name_of_set,
    open_set,
    short_name,
)

__all__ = ["ImageSet", "download_set", "is_named_set", "is_set", "name_of_set", "open_set", "short_name"]
