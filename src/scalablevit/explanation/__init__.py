"""What a network looks at, as pictures that a person understands.

Read `forward_pass` for how an image is followed through a network that stays as it was, `evidence`, `looks` and
`windows` for what is computed, `panels` for what is said and drawn of it.
"""

from scalablevit.explanation.explaining import Question, Subject, explain, explain_each, explain_image
from scalablevit.explanation.explanation import Explanation
from scalablevit.explanation.glance import attention_picture

__all__ = ["Explanation", "Question", "Subject", "attention_picture", "explain", "explain_each", "explain_image"]
