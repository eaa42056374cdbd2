"""Text by masked language models in few steps."""

from fewstep.tasks.text.models import TextModel, open_text_model, token_logits
from fewstep.tasks.text.writing import Written, write

__all__ = ["TextModel", "Written", "open_text_model", "token_logits", "write"]
