"""What a person names -> a model that draws it."""

from trainer.drawing.checkpoints import RunCheckpoints
from trainer.drawing.opening import Drawable, open_drawable, open_for_drawing

__all__ = ["Drawable", "RunCheckpoints", "open_drawable", "open_for_drawing"]
