"""Text that tries to be more than text: markup, scripts, formulas, steering characters; what every view has to show as it is."""

import json
import unicodedata
from html.parser import HTMLParser
from pathlib import Path

INJECTIONS = [
    "<script>document.title='pwned'</script>",
    "</script><script>alert(1)</script>",
    '<img src=x onerror="alert(1)">',
    "<svg/onload=alert(1)>",
    "<svg><animate onbegin=alert(1) attributeName=x dur=1s>",
    "\"><iframe src='http://example.org'></iframe>",
    "' onmouseover='alert(1)",
    '" onfocus="alert(1)" autofocus="',
    "</td></tr></table><h1>out</h1>",
    "</pre></div></details><style>*{display:none}</style>",
    "</text></svg><script>alert(1)</script>",
    "</title><script>alert(1)</script>",
    "</span></code><b>bold</b>",
    '<a href="javascript:alert(1)">click</a>',
    "[link](javascript:alert(1)) ![image](http://example.org/a.png)",
    "# heading\n* list\n> quote\n```\ncode\n```",
    "<details open ontoggle=alert(1)>",
    "<math><mtext><script>alert(1)</script></mtext></math>",
    "<!-- <script>alert(1)</script> -->",
    "]]><script>alert(1)</script>",
    "<![CDATA[<b>x</b>]]>",
    "&lt;script&gt;alert(1)&lt;/script&gt;",
    "&#60;script&#62;",
    "{{ cell.source }} {% raw %} ${7*7} #{7*7}",
    "$x^2$ \\(y\\) $$z$$ \\href{javascript:alert(1)}{a}",
    "\\begin{document}\\input{/etc/passwd}",
    "a\x1b[2J\x1b[31mred\x07",
    "\x1b]8;;http://example.org\x1b\\link\x1b]8;;\x1b\\",
    "\x9b31m\x85 next line",
    "abc\u202egpj.exe\u2066\u2069",
    "\u200f\u061c\u200eright to left",
    "line\r\rover\bwritten\x00\x0b\x0c",
    "a\x7fdel",
    "<meta http-equiv=refresh content='0;url=http://example.org'>",
    "<base href='http://example.org'><form action=x><input autofocus onfocus=alert(1)>",
    "%3Cscript%3Ealert(1)%3C/script%3E",
    "data:text/html,<script>alert(1)</script>",
]


def encodable() -> list[str]:
    """The same without lone surrogates, which no file can hold."""
    return [one.encode("utf-8", "replace").decode() for one in INJECTIONS]


def write_rows(path: Path, copies: int = 1) -> Path:
    """A JSON-lines file of conversations in which every text is an injection; each copy has questions of its own."""
    rows = (
        {"messages": [{"role": "user", "content": f"{number} {bad}"}, {"role": "assistant", "content": bad}]}
        for number in range(copies)
        for bad in encodable()
    )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


class Page(HTMLParser):
    """Tags, attributes and text of a piece of HTML, as a browser would meet them."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.tags, self.attributes, self.words, self.depth, self.unclosed = set(), [], "", 0, []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.attributes += attributes
        if tag not in ("br", "img"):
            self.unclosed.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.add(tag)
        self.attributes += attributes

    def handle_endtag(self, tag):
        assert self.unclosed and self.unclosed.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data):
        self.words += data

    def handle_comment(self, data):
        raise AssertionError(f"a comment: {data}")

    def unknown_decl(self, data):
        raise AssertionError(f"a declaration: {data}")


def steers(letter):
    """Whether a character acts instead of being seen."""
    bidi = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
    return letter in bidi or (unicodedata.category(letter) in ("Cc", "Cs") and letter not in "\n\t")
