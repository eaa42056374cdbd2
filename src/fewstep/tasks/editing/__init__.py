"""Pictures changed by what is asked for: from any row of any plan, by a prompt, an instruction, an age or an editor."""

from fewstep.tasks.editing.ageing import (
    aged,
    check_age,
    reweighted_singular_values,
    rotated_embedding,
    strength_by_need,
)
from fewstep.tasks.editing.edit import Edit, edit_picture, first_row, working_size
from fewstep.tasks.editing.editor import Editor, without
from fewstep.tasks.editing.reading import caption_of, prompt_of

__all__ = [
    "Edit",
    "Editor",
    "aged",
    "caption_of",
    "check_age",
    "edit_picture",
    "first_row",
    "prompt_of",
    "reweighted_singular_values",
    "rotated_embedding",
    "strength_by_need",
    "without",
    "working_size",
]
