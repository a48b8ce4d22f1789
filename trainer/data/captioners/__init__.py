"""The captioners that a recipe or a command can name."""

from typing import Annotated

from pydantic import Field

from trainer.data.captioners.blip import Blip
from trainer.data.captioners.language import LanguageModel
from trainer.data.captioners.plain import FileName, Fixed, FolderName
from trainer.data.captioners.tagger import WdTagger

AnyCaptioner = Annotated[Blip | WdTagger | LanguageModel | FileName | FolderName | Fixed, Field(discriminator="kind")]
