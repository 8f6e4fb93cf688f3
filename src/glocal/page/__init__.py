"""A page about one input: what a model predicts, what each head attends to, and how attention is computed.

`static/` is the page: plain HTML, CSS and JavaScript modules. `write_page` puts it into one file with the numbers of an
input. A server serves the folder as it is, and answers the page's requests by `numbers`. `contract` describes both.
"""

from glocal.page.contract import Numbers, Payload
from glocal.page.look import numbers
from glocal.page.write import STATIC, write_page

__all__ = ["STATIC", "Numbers", "Payload", "numbers", "write_page"]
