"""Where pictures and their words come from."""

from typing import Annotated

from pydantic import Field

from trainer.data.sources.folder import ImageFolder
from trainer.data.sources.huggingface import HuggingFace
from trainer.data.sources.sd_scripts import SdScripts
from trainer.data.sources.webdataset import WebDataset

AnySource = Annotated[ImageFolder | SdScripts | HuggingFace | WebDataset, Field(discriminator="kind")]
