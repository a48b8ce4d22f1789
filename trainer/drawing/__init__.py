"""What a person names -> a model that draws it."""

from trainer.drawing.models import RunModels
from trainer.drawing.opening import Drawable, open_drawable, open_for_drawing

__all__ = ["Drawable", "RunModels", "open_drawable", "open_for_drawing"]
